"""From image files to features: a model's embeddings of many images, in order, in one pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ..data.images import ImageSource, open_image
from ..errors import UserError
from ..model import ImageEncoder, ImageEncoderProcessor
from ..processes import raise_together
from .sharded import rows_on_main, share_of_batches


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
    Where several processes were launched, all of them call this with the same images and share the batches; process 0
    gets the features of all, the others arrays without rows, (0, D).
    Raises UserError where there is no image, and naming the first one that is broken, on every process.
    """
    if not len(images):
        raise UserError("there is no image to embed: give at least one")
    if device is not None:
        nn.Module.to(model, device)
    share = share_of_batches(len(images), batch_size)
    # No more processes than there are batches to make.
    workers = min(num_workers, len(share))
    loader = DataLoader(_Images(images), batch_sampler=share, num_workers=workers, collate_fn=_Collate(processor))

    def features_of(batch: Tensor | UserError) -> dict[str, Tensor]:
        # Raised here: what a worker process raises would reach the user as a traceback.
        pixel_values = raise_together(batch)
        features = model.image_features(pixel_values, names)
        if flip_test:
            mirrored = model.image_features(pixel_values.flip(-1), names)
            features = {name: F.normalize(feature + mirrored[name], dim=1) for name, feature in features.items()}
        return features

    with eval_mode(model), torch.inference_mode():
        return rows_on_main(features_of, loader, len(images), unit="image", progress=progress)


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
