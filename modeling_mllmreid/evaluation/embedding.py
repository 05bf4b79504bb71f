"""From image files to features: the embeddings of many images, shared over the processes of a run."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.images import ImageSource, open_image
from ..model import ImageEncoder, ImageEncoderProcessor
from ..utils.errors import UserError
from ..utils.processes import gather_on_main, raise_together, this_process

Batch = TypeVar("Batch")


def own_batches(count: int, batch_size: int) -> list[list[int]]:
    """The rows of each of this process's batches, of `count` rows in all (1 or more): every W-th batch of W processes.

    They are the batches that one process alone makes, so that the features do not depend on the number of processes.
    Each process has as many, as the forward passes of sharded parameters wait for one another: where the last round
    lacks batches, row 0 fills up, alone in its batch.
    """
    state = this_process()
    batches = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    batches += [[0]] * (-len(batches) % state.num_processes)
    return batches[state.process_index :: state.num_processes]


def features_on_main(
    embed: Callable[[Batch], Mapping[str, Tensor]], batches: Iterable[Batch], count: int, *, unit: str, progress: bool
) -> dict[str, np.ndarray]:
    """The named rows of all processes' batches on process 0, each (count, D), in order; none, (0, D), on the others.

    embed: a batch's named rows, each (B, D). batches: this process's, from `own_batches`. Each round's rows go to
    process 0 at once. progress: whether process 0 shows a bar, of `unit`s.
    """
    main = this_process().is_main_process
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    with tqdm(total=count, desc="embedding", unit=unit, disable=None if progress and main else True) as bar:
        for batch in batches:
            rows = {name: values.cpu().numpy() for name, values in embed(batch).items()}
            for of_process in gather_on_main(rows) or [{name: values[:0].copy() for name, values in rows.items()}]:
                for name, values in of_process.items():
                    parts[name].append(values)
                bar.update(min(len(values), count - bar.n))
    # What fills up the last round is behind all rows.
    return {name: np.concatenate(part)[:count] for name, part in parts.items()}


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
    share = own_batches(len(images), batch_size)
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
        return features_on_main(features_of, loader, len(images), unit="image", progress=progress)


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


def embed_feature(model: ImageEncoder, processor: ImageEncoderProcessor, images: list, **options) -> np.ndarray:
    """The model's configured feature alone, (N, D) float32, on process 0. options: those of `embed_images`."""
    feature = model.config.test_feature
    names = ("llm", "vision") if feature == "concat" else (feature,)
    return embed_images(model, processor, images, names=names, **options)[feature]


def model_fingerprint(model: ImageEncoder, processor: ImageEncoderProcessor) -> np.ndarray:
    """The embedding (D,) of one fixed drawn image: other weights, sizes or image backends give another."""
    rows, columns = np.mgrid[0:128, 0:64]
    pixels = np.stack([2 * rows, 4 * columns, (rows * columns) % 256], axis=-1) % 256
    image = Image.fromarray(pixels.astype(np.uint8))
    with eval_mode(model):
        pixel_values = processor(images=[image])["pixel_values"]
        return model.encode_images(pixel_values)[0].detach().cpu().numpy()
