"""The nearest gallery images of each query."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import UserError
from .distances import Features, distance_blocks
from .same_person import SamePerson


@dataclass(frozen=True)
class Ranking:
    """The k nearest gallery images of each query, nearest first.

    indices: (Q, k) int64 into the gallery, -1 where a row is short; distances: (Q, k) float32, infinity there.
    """

    indices: np.ndarray
    distances: np.ndarray


def rank_gallery(
    query: Features,
    gallery: Features,
    k: int,
    *,
    same_person: SamePerson | None = None,
    metric: str = "cosine",
    block_size: int | None = None,
) -> Ranking:
    """The k nearest gallery images of each query; of equal distances the lower gallery index comes first.

    query: (Q, D), gallery: (G, D), as in `distance_blocks`. same_person: its dropped images are left out, as in the
    metrics; a search needs none.
    Raises UserError for k below 1, for bad features, and for a rule of other queries.
    """
    blocks = distance_blocks(query, gallery, metric=metric, block_size=block_size)
    return rank_blocks(blocks, len(query), k, same_person=same_person)


def rank_blocks(
    blocks: Iterable[tuple[slice, np.ndarray | Tensor]], queries: int, k: int, *, same_person: SamePerson | None = None
) -> Ranking:
    """The ranking of `rank_gallery` from blocks of distances, whoever makes them, such as `rerank_blocks`.

    blocks: (rows, distances (rows, G)); they are not changed. queries: how many rows there are in all.
    """
    if k < 1:
        raise UserError(f"k: {k} is not a number of images: use 1 or more")
    if same_person is not None and len(same_person.query_persons) != queries:
        raise UserError(f"same_person: of {len(same_person.query_persons)} queries, not {queries}: give one per query")
    indices = np.full((queries, k), -1, dtype=np.int64)
    distances = np.full((queries, k), np.inf, dtype=np.float32)
    for rows, block in blocks:
        of_block = block.cpu().numpy() if isinstance(block, Tensor) else block
        for number, row in enumerate(of_block, start=rows.start):
            if same_person is not None:
                same, dropped = same_person.of(number)
                row = row.copy()
                row[same[dropped]] = np.inf
            nearest = nearest_in_row(row, k)
            indices[number, : len(nearest)] = nearest
            distances[number, : len(nearest)] = row[nearest]
    return Ranking(indices, distances)


def nearest_in_row(row: np.ndarray, k: int) -> np.ndarray:
    """Indices (at most k,) of the smallest distances of a row (G,), ascending, ties by index, without infinite ones."""
    candidates = np.flatnonzero(row <= np.partition(row, k - 1)[k - 1]) if k < len(row) else np.arange(len(row))
    candidates = candidates[row[candidates] < np.inf]
    return candidates[np.argsort(row[candidates], kind="stable")[:k]]
