"""Single-gallery-shot CMC: the classic CUHK03 protocol, one gallery image of each person drawn at random."""

from collections.abc import Sequence

import numpy as np

from ..retrieval.same_person import SamePerson
from .rows import Blocks, distance_rows, no_match_error


def single_shot_cmc(
    blocks: Blocks,
    same_person: SamePerson,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    repeats: int = 10,
    seed: int = 0,
) -> dict[int, float]:
    """rank -> share of draws with the match at or before it, averaged over the queries that have a match.

    blocks: as in `metrics_from_blocks`. For each query, `repeats` times, one of the gallery images of every person is
    drawn among those that the same-camera rule keeps; the rank is that of the query's person, and of equal distances
    the others count as nearer. Draws depend on the seed and the query's row, not on the block size.
    Raises UserError as `metrics_from_blocks` does.
    Source: Li et al. 2014 (CUHK03).
    """
    by_person = np.argsort(same_person.gallery_persons, kind="stable")
    hits = {int(rank): 0 for rank in ranks}
    valid = 0
    for number, row in distance_rows(blocks, same_person):
        same, dropped = same_person.of(number)
        matches = same[~dropped]
        if not len(matches):
            continue
        valid += 1
        kept = by_person[~np.isin(by_person, same[dropped])]
        persons = same_person.gallery_persons[kept]
        first = np.flatnonzero(np.diff(persons, prepend=persons[0] - 1))
        counts = np.diff(first, append=len(kept))
        chance = np.random.default_rng([seed, number]).random((repeats, len(first)))
        drawn = row[kept[first + (chance * counts).astype(np.int64)]]
        own = int(np.searchsorted(persons[first], same_person.query_persons[number]))
        place = (drawn <= drawn[:, [own]]).sum(1)  # its own draw is among them: ranks count from 1
        for rank in hits:
            hits[rank] += int((place <= rank).sum())
    if not valid:
        raise no_match_error(same_person)
    return {rank: count / (valid * repeats) for rank, count in hits.items()}
