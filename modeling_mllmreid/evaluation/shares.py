"""The batches of each process of a run, and the collection of their features on process 0."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..data.images import ImageSource, open_image
from ..utils.errors import UserError
from ..utils.processes import gather_on_main, place

Batch = TypeVar("Batch")


def own_batches(count: int, batch_size: int) -> list[list[int]]:
    """Returns the sample indices of this process's batches: every W-th batch of W processes.

    The batches are those of a single process, so the features do not depend on the number of processes. All processes
    have the same number of batches, as sharded parameters need joint forward passes; batches of sample 0 alone fill the
    last round.
    """
    rank, processes = place()
    batches = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    batches += [[0]] * (-len(batches) % processes)
    return batches[rank::processes]


def features_on_main(
    embed: Callable[[Batch], Mapping[str, np.ndarray]],
    batches: Iterable[Batch],
    count: int,
    *,
    unit: str,
    progress: bool,
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
    main = place().rank == 0
    collected: dict[str, list[np.ndarray]] = defaultdict(list)
    with tqdm(total=count, desc="embedding", unit=unit, disable=None if progress and main else True) as bar:
        for batch in batches:
            own = embed(batch)
            for features in gather_on_main(own) or [{name: values[:0].copy() for name, values in own.items()}]:
                for name, values in features.items():
                    collected[name].append(values)
                bar.update(min(len(values), count - bar.n))
    # The batches that fill the last round are at the end.
    return {name: np.concatenate(batches)[:count] for name, batches in collected.items()}


class OpenedImages:
    """The images of a run by index; in place of an image that cannot be opened, its UserError.

    An error in a loading process would reach the user as a traceback.
    """

    def __init__(self, sources: Sequence[ImageSource | Image.Image]):
        self.sources = sources

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Image.Image | UserError:
        try:
            return open_image(self.sources[index])
        except UserError as error:
            return error


class PixelBatch:
    """Converts images to pixel values (B, 3, H, W), or returns the first UserError. Loading processes pickle a class.

    Args:
        processor (`Callable`): Converts a list of images; the result has the key `pixel_values`.
    """

    def __init__(self, processor: Callable[..., Mapping[str, Any]]):
        self.processor = processor

    def __call__(self, images: Sequence[Image.Image | UserError]) -> Any:
        broken = [image for image in images if isinstance(image, UserError)]
        return broken[0] if broken else self.processor(images=images)["pixel_values"]
