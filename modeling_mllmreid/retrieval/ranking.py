"""The nearest gallery images of each query, from blocks of distances."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..utils.errors import UserError
from .distances import Features, distance_blocks
from .matching import SamePerson

Blocks = Iterable[tuple[slice, np.ndarray | Tensor]]


def query_distances(blocks: Blocks, same_person: SamePerson) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (query number, its distances to the gallery (G,) float32) for every query, as the blocks come.

    blocks: (rows, distances (rows, G)) with each query row once, in any order; smaller is nearer, read as float32. A
    whole matrix is one block: `[(slice(0, len(matrix)), matrix)]`. The rows may be views of the block: do not change
    them.
    Raises UserError for NaN distances, a block of the wrong shape, and rows that come twice or never.
    """
    seen = np.zeros(len(same_person.query_persons), dtype=np.int64)
    for rows, block in blocks:
        distances = np.asarray(block.detach().float().cpu() if isinstance(block, Tensor) else block, dtype=np.float32)
        numbers = range(len(seen))[rows]
        expected = (len(numbers), len(same_person.gallery_persons))
        if distances.shape != expected:
            raise UserError(
                f"distances of query rows {rows.start} to {rows.stop}: shape {distances.shape}, expected {expected}: "
                "give one row per query, one column per gallery image"
            )
        # The maximum is NaN where any element is, without a second matrix of flags.
        if distances.size and np.isnan(distances.max()):
            raise UserError(f"distances of query rows {rows.start} to {rows.stop} hold NaN: mend what computed them")
        seen[rows] += 1
        yield from zip(numbers, distances, strict=True)
        del block, distances  # before the next block is made
    if (seen != 1).any():
        row = int(np.flatnonzero(seen != 1)[0])
        raise UserError(f"distances: query row {row} came {seen[row]} times: give each row once")


def no_match_error(same_person: SamePerson) -> UserError:
    """What to raise where no query has a match: how many of what there are, why, and the mend."""
    queries, persons = same_person.query_persons, same_person.gallery_persons
    counts = f"{len(queries):,} queries and {len(persons):,} gallery images"
    if not (len(queries) and len(persons)):
        return UserError(f"no query has a match: {counts}: give at least one image on both sides")
    shared = int(np.isin(persons, queries).sum())
    if not shared or not same_person.excluded:
        return UserError(
            f"no query has a match: {counts}, but none of the {len(np.unique(queries)):,} persons of the queries is "
            f"among the {len(np.unique(persons)):,} of the gallery: number the persons of both sides alike"
        )
    cameras = len(np.unique(same_person.excluded[0][1]))
    return UserError(
        f"no query has a match: {counts}; the same-camera filter drops gallery images of the query's person and "
        f"camera, here all {shared:,} of the queries' persons (the gallery has {cameras} cameras): "
        "leave the camera ids out for no filter, or give -1 where the camera is unknown"
    )


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
