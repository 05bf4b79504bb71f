"""From image files to features: a model's embeddings of many images, in order, in one pass."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.images import ImageSource, open_image
from ..errors import UserError
from ..model import ImageEncoder, ImageEncoderProcessor


def embed_images(
    model: ImageEncoder,
    processor: ImageEncoderProcessor,
    images: Sequence[ImageSource],
    *,
    names: tuple[str, ...] = ("llm", "vision"),
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    flip_test: bool = False,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """The test features of all images, by name, each (N, D) float32 and L2-normalised, row i of images[i].

    names: "llm", "vision" or both, which gives "concat" too; without "llm" the language model does not run. The model
    goes to `device` where one is given, runs in eval mode, and is left in the mode it was in. flip_test: the feature is
    the mean of those of the image and of its mirror image, normalised again.
    Raises UserError where there is no image, and naming the first one that is broken.
    """
    if not len(images):
        raise UserError("there is no image to embed: give at least one")
    if device is not None:
        nn.Module.to(model, device)
    loader = DataLoader(_Images(images), batch_size=batch_size, num_workers=num_workers, collate_fn=_Collate(processor))
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    with (
        eval_mode(model),
        torch.inference_mode(),
        tqdm(total=len(images), desc="embedding", unit="image", disable=not progress) as bar,
    ):
        for pixel_values in loader:
            # Raised here: what a worker process raises would reach the user as a traceback.
            if isinstance(pixel_values, UserError):
                raise pixel_values
            pixel_values = pixel_values.to(model.device)
            features = model.image_features(pixel_values, names)
            if flip_test:
                mirrored = model.image_features(pixel_values.flip(-1), names)
                features = {name: F.normalize(feature + mirrored[name], dim=1) for name, feature in features.items()}
            for name, feature in features.items():
                parts[name].append(feature.cpu().numpy())
            bar.update(len(pixel_values))
    return {name: np.concatenate(part) for name, part in parts.items()}


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model in eval mode for the block and every module back in the mode it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Images(Dataset):
    """Opened images, or the UserError of one that cannot be opened."""

    def __init__(self, sources: Sequence[ImageSource]):
        self.sources = sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int):
        try:
            return open_image(self.sources[index])
        except UserError as error:
            return error


class _Collate:
    """Images to pixel values (B, 3, H, W), or the first UserError among them. A class: workers must pickle it."""

    def __init__(self, processor: ImageEncoderProcessor):
        self.processor = processor

    def __call__(self, images: list) -> Tensor | UserError:
        broken = [image for image in images if isinstance(image, UserError)]
        return broken[0] if broken else self.processor(images=images)["pixel_values"]
