"""Embeddings of many images, computed by all processes of a run; torch is imported for models that need it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.images import ImageSource
from ..utils.errors import UserError
from ..utils.processes import raise_together
from .onnx_encoder import OnnxEncoder
from .shares import OpenedImages, PixelBatch, features_on_main, own_batches

if TYPE_CHECKING:
    import torch

    from .torch_embedding import Encoder, EncoderProcessor


def embed_images(
    model: "Encoder",
    processor: "EncoderProcessor",
    images: Sequence[ImageSource | Image.Image],
    *,
    names: tuple[str, ...] = ("llm", "vision"),
    batch_size: int = 64,
    num_workers: int = 0,
    device: "torch.device | str | None" = None,
    flip_test: bool = False,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Computes the test features of images.

    A model of torch runs in eval mode and returns to its previous mode. If several processes run, all of them call this
    with the same images and share the batches.

    Args:
        model (`Encoder`): the model, in its full or vision form, or an ONNX file.
        processor (`EncoderProcessor`): its processor.
        images (`Sequence`): N paths or PIL images of any size.
        names (`tuple[str, ...]`, defaults to `("llm", "vision")`): features to compute; both also give "concat".
            Without "llm" the language model does not run.
        batch_size (`int`, defaults to 64): images per forward pass.
        num_workers (`int`, defaults to 0): processes that open images.
        device (`torch.device` or `str`, *optional*): device that the model moves to.
        flip_test (`bool`, defaults to `False`): average the features of each image and its mirror image.
        progress (`bool`, defaults to `True`): whether to show a progress bar.

    Returns:
        `dict[str, np.ndarray]`: features by name, each (N, D) float32, L2-normalised, on process 0; (0, D) on others.

    Raises:
        UserError: if there is no image, or an image is broken; on every process, with the name of the first one.
    """
    if not len(images):
        raise UserError("there is no image to embed: give at least one")
    share = own_batches(len(images), batch_size)
    # No more workers than batches.
    workers = min(num_workers, len(share))
    if not isinstance(model, OnnxEncoder):
        from .torch_embedding import embed_with_torch

        return embed_with_torch(
            model,
            processor,
            images,
            share,
            names=names,
            num_workers=workers,
            device=device,
            flip_test=flip_test,
            progress=progress,
        )
    if workers:
        from .torch_embedding import image_loader

        batches = image_loader(processor, images, share, workers)
    else:
        opened, to_pixels = OpenedImages(images), PixelBatch(processor)
        batches = (to_pixels([opened[index] for index in batch]) for batch in share)

    def features_of(batch: np.ndarray | UserError) -> dict[str, np.ndarray]:
        return {"vision": model.encode_images(raise_together(batch), flip_test=flip_test)}

    return features_on_main(features_of, batches, len(images), unit="image", progress=progress)


def embed_feature(
    model: "Encoder", processor: "EncoderProcessor", images: Sequence[ImageSource | Image.Image], **options: Any
) -> np.ndarray:
    """Computes the model's configured feature, (N, D) float32, on process 0. `options` are those of `embed_images`."""
    feature = model.config.test_feature
    names = ("llm", "vision") if feature == "concat" else (feature,)
    return embed_images(model, processor, images, names=names, **options)[feature]


def model_fingerprint(model: "Encoder", processor: "EncoderProcessor") -> np.ndarray:
    """Returns the embedding (D,) of a fixed synthetic image. It identifies weights, image size and image backend."""
    rows, columns = np.mgrid[0:128, 0:64]
    pixels = np.stack([2 * rows, 4 * columns, (rows * columns) % 256], axis=-1) % 256
    pixel_values: Any = processor(images=[Image.fromarray(pixels.astype(np.uint8))])["pixel_values"]
    if isinstance(model, OnnxEncoder):
        fingerprint: np.ndarray = model.encode_images(pixel_values)[0]
        return fingerprint
    from .torch_embedding import eval_mode

    with eval_mode(model):
        return model.encode_images(pixel_values)[0].detach().cpu().numpy()
