"""Embeddings of many images by a model of torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..data.images import ImageSource
from ..model import ImageEncoder, ImageEncoderProcessor
from ..utils.errors import UserError
from ..utils.processes import raise_together
from .onnx_encoder import OnnxEncoder, OnnxProcessor
from .shares import OpenedImages, PixelBatch, features_on_main

Encoder = ImageEncoder | OnnxEncoder
EncoderProcessor = ImageEncoderProcessor | OnnxProcessor


def embed_with_torch(
    model: ImageEncoder,
    processor: EncoderProcessor,
    images: Sequence[ImageSource | Image.Image],
    share: list[list[int]],
    *,
    names: tuple[str, ...],
    num_workers: int,
    device: torch.device | str | None,
    flip_test: bool,
    progress: bool,
) -> dict[str, np.ndarray]:
    """Computes features as `embed_images` does; `share` are the indices of this process's batches."""
    if device is not None:
        nn.Module.to(model, device)

    def features_of(batch: Tensor | UserError) -> dict[str, np.ndarray]:
        # Raised here: an error in a worker process would reach the user as a traceback.
        pixel_values = raise_together(batch)
        features = model.image_features(pixel_values, names)
        if flip_test:
            mirrored = model.image_features(pixel_values.flip(-1), names)
            features = {name: F.normalize(feature + mirrored[name], dim=1) for name, feature in features.items()}
        return as_arrays(features)

    loader = image_loader(processor, images, share, num_workers)
    with eval_mode(model), torch.inference_mode():
        return features_on_main(features_of, loader, len(images), unit="image", progress=progress)


def image_loader(
    processor: EncoderProcessor, images: Sequence[ImageSource | Image.Image], share: list[list[int]], num_workers: int
) -> Iterable[Any]:
    """Returns the pixel values, or the UserError, of each batch; other processes open the images if asked for."""
    dataset: Any = OpenedImages(images)
    return DataLoader(dataset, batch_sampler=share, num_workers=num_workers, collate_fn=PixelBatch(processor))


def as_arrays(features: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Returns features as arrays on the CPU."""
    return {name: values.cpu().numpy() for name, values in features.items()}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model in eval mode for the block; afterwards every module returns to its previous mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
