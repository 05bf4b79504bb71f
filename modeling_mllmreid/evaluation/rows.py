"""Rows of distances out of blocks, whoever makes them: checked, each query once."""

from collections.abc import Iterable, Iterator

import numpy as np
from torch import Tensor

from ..errors import UserError
from ..retrieval.same_person import SamePerson

Blocks = Iterable[tuple[slice, np.ndarray | Tensor]]


def distance_rows(blocks: Blocks, same_person: SamePerson) -> Iterator[tuple[int, np.ndarray]]:
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
