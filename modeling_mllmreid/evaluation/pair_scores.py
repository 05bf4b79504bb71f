"""Scores of the pairs of a shortlist: a crop is read once while it is of use, and pairs are scored in batches.

The readings (keys and values of the language model) are in a cache of limited size. Pairs are scored in blocks whose
crops fit into the cache; of a full cache, the crops that were used least recently are replaced.
"""

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from ..data.images import ImageSource, open_image
from ..model import MllmReIDModel, MllmReIDProcessor
from ..model.pairs import Reading
from ..utils.errors import UserError
from ..utils.processes import gather_on_main, place
from .torch_embedding import eval_mode, image_loader

# Readings of a crop of 128 image tokens: 64 MiB at 7B (LLaVA-1.5, bfloat16), a quarter of that or less with grouped
# heads.
CACHE_BYTES = 4 * 2**30


@dataclass(frozen=True)
class PairCost:
    """What the scores of a shortlist cost.

    Args:
        pairs (`int`): number of scored pairs.
        crops (`int`): number of readings; a crop that had left the cache counts again.
        reading_passes (`int`): forward passes that read crops.
        question_passes (`int`): forward passes of questions.
        seconds (`float`): duration; of several processes the longest.
    """

    pairs: int
    crops: int
    reading_passes: int
    question_passes: int
    seconds: float

    def to_dict(self) -> dict[str, float]:
        """Returns the fields for JSON."""
        return asdict(self)

    @staticmethod
    def combined(costs: "Sequence[PairCost]") -> "PairCost":
        """Returns the cost of several processes that worked at the same time."""
        return PairCost(
            pairs=sum(cost.pairs for cost in costs),
            crops=sum(cost.crops for cost in costs),
            reading_passes=sum(cost.reading_passes for cost in costs),
            question_passes=sum(cost.question_passes for cost in costs),
            seconds=max(cost.seconds for cost in costs),
        )


Scores = tuple[np.ndarray, PairCost]
Images = Sequence[ImageSource | Image.Image]


def score_shortlist(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    query_images: Images,
    gallery_images: Images,
    places: np.ndarray,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    cache_bytes: int = CACHE_BYTES,
    progress: bool = True,
) -> Scores:
    """Scores each query with the gallery images of its shortlist, on the device of the model.

    Args:
        model (`MllmReIDModel`): a model with a question about pairs; it runs in eval mode.
        processor (`MllmReIDProcessor`): its processor.
        query_images (`Sequence`): Q paths or PIL images.
        gallery_images (`Sequence`): G paths or PIL images.
        places (`np.ndarray`): (Q, k) int64 gallery indices of each query, -1 for none, as of `Ranking.indices`.
        batch_size (`int`, defaults to 64): crops, and pairs, per forward pass.
        num_workers (`int`, defaults to 0): processes that open images.
        cache_bytes (`int`, defaults to 4 GiB): limit for all readings: those in the cache, and those of the batch that
            is being read. Three readings are always allowed.
        progress (`bool`, defaults to `True`): whether to show a progress bar.

    Returns:
        `tuple[np.ndarray, PairCost]`: scores (Q, k) float32, logit of yes minus logit of no, NaN without an image; and
        what they cost. The scores do not depend on the limits, beyond the rounding of batched products.

    Raises:
        UserError: if an image is broken, or a score is not finite.
    """
    started = time.perf_counter()
    scores = np.full(places.shape, np.nan, dtype=np.float32)
    there = places >= 0
    first, second = np.nonzero(there)[0], len(query_images) + places[there]
    if not len(first):
        return scores, PairCost(0, 0, 0, 0, time.perf_counter() - started)
    images = [*query_images, *gallery_images]
    values: list[np.ndarray] = []
    with eval_mode(model), torch.inference_mode():
        # The first reading shows how much memory one takes.
        opened: Any = [open_image(images[first[0]])]
        sample = model.read_images(processor(images=opened)["pixel_values"])
        allowed = max(cache_bytes // _bytes_of(sample), 3)
        read_size = min(batch_size, max(allowed // 4, 1))
        capacity = min(allowed - read_size, len({*first.tolist(), *second.tolist()}))
        cache = _empty(sample, capacity)
        _store(cache, sample, [0])
        steps = list(_plan(first, second, capacity))
        share = [batch for step in steps for batch in _chunks(step.missing, read_size)]
        loader = iter(image_loader(processor, images, share, min(num_workers, len(share))))
        shown = tqdm(total=len(first), desc="pairs", unit="pair", disable=None if progress else True)
        with shown as bar:
            for step in steps:
                for slots in _chunks(step.slots, read_size):
                    pixels = next(loader)
                    if isinstance(pixels, UserError):
                        raise pixels
                    _store(cache, model.read_images(pixels), slots)
                for one, other in zip(_chunks(step.first, batch_size), _chunks(step.second, batch_size), strict=True):
                    pair_scores = model.score_pairs(cache, torch.tensor(one), torch.tensor(other))
                    values.append(pair_scores.float().cpu().numpy())
                    bar.update(len(one))
    scores[there] = np.concatenate(values)
    if count := len(first) - np.isfinite(scores[there]).sum():
        raise UserError(
            f"pair scores: {count:,} of {len(first):,} are not finite: load the model in float32 or bfloat16, or train "
            "it again"
        )
    crops = 1 + sum(map(len, share))
    return scores, PairCost(len(first), crops, 1 + len(share), len(values), time.perf_counter() - started)


def shared_scores(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    query_images: Images,
    gallery_images: Images,
    places: np.ndarray,
    *,
    progress: bool = True,
    **options: Any,
) -> Scores | None:
    """Computes `score_shortlist` with all processes of a run, which share the queries.

    All processes call it with the same arguments. Process 0 gets the result, the others None.
    """
    rank, processes = place()
    own = np.array_split(np.arange(len(query_images)), processes)[rank]
    queries = [query_images[query] for query in own]
    show = progress and rank == 0
    gathered = gather_on_main(
        score_shortlist(model, processor, queries, gallery_images, places[own], progress=show, **options)
    )
    if not gathered:
        return None
    scores, costs = zip(*gathered, strict=True)
    return np.concatenate(scores), PairCost.combined(costs)


class _Step(NamedTuple):
    """A block of pairs: the crops that are read for it, their places in the cache, and those of the pairs' crops."""

    missing: list[int]
    slots: list[int]
    first: list[int]
    second: list[int]


def _plan(first: np.ndarray, second: np.ndarray, capacity: int) -> Iterator[_Step]:
    """Yields the steps for pairs of crops; the first crop is in place 0 of the cache already."""
    cached: OrderedDict[int, int] = OrderedDict({int(first[0]): 0})
    for pairs, crops in _blocks(first.tolist(), second.tolist(), capacity):
        missing = [crop for crop in crops if crop not in cached]
        for crop in crops:
            if crop in cached:
                cached.move_to_end(crop)
        for crop in missing:
            # The crops of this block are the last ones, and all of them fit.
            slot = len(cached) if len(cached) < capacity else cached.popitem(last=False)[1]
            cached[crop] = slot
        slots = [cached[crop] for crop in missing]
        yield _Step(missing, slots, *([cached[crop] for crop in side[pairs].tolist()] for side in (first, second)))


def _blocks(first: list[int], second: list[int], capacity: int) -> Iterator[tuple[slice, list[int]]]:
    """Yields consecutive pairs that together have at most `capacity` crops, and these crops."""
    start, crops = 0, dict[int, None]()
    for number, pair in enumerate(zip(first, second, strict=True)):
        if len(crops) + sum(crop not in crops for crop in pair) > capacity:
            yield slice(start, number), list(crops)
            start, crops = number, {}
        crops.update(dict.fromkeys(pair))
    yield slice(start, len(first)), list(crops)


def _chunks(values: list[int], size: int) -> list[list[int]]:
    return [values[start : start + size] for start in range(0, len(values), size)]


def _bytes_of(reading: Reading) -> int:
    """Returns the bytes of the reading of one crop."""
    return sum(states[0].numel() * states.element_size() for states in (*reading.keys, *reading.values))


def _empty(sample: Reading, count: int) -> Reading:
    """Returns an uninitialised reading of `count` crops, each layer on its own device."""
    keys, values = (
        tuple(states.new_empty(count, *states.shape[1:]) for states in side) for side in (sample.keys, sample.values)
    )
    return Reading(keys, values)


def _store(cache: Reading, reading: Reading, slots: list[int]) -> None:
    """Copies the readings of some crops into these places of the cache."""
    for kept, new in zip((*cache.keys, *cache.values), (*reading.keys, *reading.values), strict=True):
        kept[slots] = new
