"""Embeddings of many images, computed by all processes of a run."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ..data.images import ImageSource, open_image
from ..utils.errors import UserError
from ..utils.processes import gather_on_main, raise_together, this_process
from .onnx_encoder import Encoder, EncoderProcessor

Batch = TypeVar("Batch")


def own_batches(count: int, batch_size: int) -> list[list[int]]:
    """Returns the sample indices of this process's batches: every W-th batch of W processes.

    The batches are those of a single process, so the features do not depend on the number of processes. All processes
    have the same number of batches, as sharded parameters need joint forward passes; batches of sample 0 alone fill the
    last round.
    """
    state = this_process()
    batches = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    batches += [[0]] * (-len(batches) % state.num_processes)
    return batches[state.process_index :: state.num_processes]


def features_on_main(
    embed: Callable[[Batch], Mapping[str, Tensor]], batches: Iterable[Batch], count: int, *, unit: str, progress: bool
) -> dict[str, np.ndarray]:
    """Collects the features of all processes' batches on process 0; the other processes get empty arrays.

    Args:
        embed (`Callable`): maps a batch to its features by name, each (B, D).
        batches (`Iterable`): the batches of this process, in the order of `own_batches`.
        count (`int`): number of samples of all processes.
        unit (`str`): name of a sample, for the progress bar.
        progress (`bool`): whether process 0 shows a progress bar.

    Returns:
        `dict[str, np.ndarray]`: features by name, each (count, D), in the order of the samples; (0, D) elsewhere.
    """
    main = this_process().is_main_process
    collected: dict[str, list[np.ndarray]] = defaultdict(list)
    with tqdm(total=count, desc="embedding", unit=unit, disable=None if progress and main else True) as bar:
        for batch in batches:
            own = {name: values.cpu().numpy() for name, values in embed(batch).items()}
            for features in gather_on_main(own) or [{name: values[:0].copy() for name, values in own.items()}]:
                for name, values in features.items():
                    collected[name].append(values)
                bar.update(min(len(values), count - bar.n))
    # The batches that fill the last round are at the end.
    return {name: np.concatenate(batches)[:count] for name, batches in collected.items()}


def embed_images(
    model: Encoder,
    processor: EncoderProcessor,
    images: Sequence[ImageSource],
    *,
    names: tuple[str, ...] = ("llm", "vision"),
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    flip_test: bool = False,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Computes the test features of images.

    The model runs in eval mode and returns to its previous mode. If several processes run, all of them call this with
    the same images and share the batches.

    Args:
        model (`Encoder`): the model, in its full or vision form.
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
    if device is not None:
        nn.Module.to(model, device)
    share = own_batches(len(images), batch_size)
    # No more workers than batches.
    workers = min(num_workers, len(share))
    loader = DataLoader(_Images(images), batch_sampler=share, num_workers=workers, collate_fn=_Collate(processor))

    def features_of(batch: Tensor | UserError) -> dict[str, Tensor]:
        # Raised here: an error in a worker process would reach the user as a traceback.
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
    """Puts a model in eval mode for the block; afterwards every module returns to its previous mode."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


class _Images(Dataset[Image.Image | UserError]):
    """Opens images; returns the UserError of an image that cannot be opened."""

    def __init__(self, sources: Sequence[ImageSource]):
        self.sources = sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Image.Image | UserError:
        try:
            return open_image(self.sources[index])
        except UserError as error:
            return error


class _Collate:
    """Converts images to pixel values (B, 3, H, W), or returns the first UserError. Workers can pickle a class."""

    def __init__(self, processor: EncoderProcessor):
        self.processor = processor

    def __call__(self, images: list[Image.Image | UserError]) -> Tensor | UserError:
        broken = [image for image in images if isinstance(image, UserError)]
        return broken[0] if broken else self.processor(images=images)["pixel_values"]


def embed_feature(
    model: Encoder, processor: EncoderProcessor, images: Sequence[ImageSource], **options: Any
) -> np.ndarray:
    """Computes the model's configured feature, (N, D) float32, on process 0. `options` are those of `embed_images`."""
    feature = model.config.test_feature
    names = ("llm", "vision") if feature == "concat" else (feature,)
    return embed_images(model, processor, images, names=names, **options)[feature]


def model_fingerprint(model: Encoder, processor: EncoderProcessor) -> np.ndarray:
    """Returns the embedding (D,) of a fixed synthetic image. It identifies weights, image size and image backend."""
    rows, columns = np.mgrid[0:128, 0:64]
    pixels = np.stack([2 * rows, 4 * columns, (rows * columns) % 256], axis=-1) % 256
    image = Image.fromarray(pixels.astype(np.uint8))
    with eval_mode(model):
        pixel_values = processor(images=[image])["pixel_values"]
        return model.encode_images(pixel_values)[0].detach().cpu().numpy()
