"""Open-set search: how often somebody who is in the gallery is found, and somebody who is not is taken for another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UserError
from ..retrieval.same_person import SamePerson
from .rows import Blocks, distance_rows, no_match_error


@dataclass(frozen=True)
class OpenSetDistances:
    """What each query's searches find.

    mate: (Q,) float32, the nearest match where it is the nearest of all, infinity where another person is as near, NaN
    without a match. other: (Q,) float32, the nearest image of another person, which is what the query finds where its
    own person is not in the gallery; infinity where there is none. other_person: (Q,) int64, whom that image shows, by
    the numbers of `SamePerson`, -1 where there is none.
    """

    mate: np.ndarray
    other: np.ndarray
    other_person: np.ndarray


@dataclass(frozen=True)
class OpenSetMetrics:
    """Rates of searches, as fractions of 1.

    tpir: FPIR -> share of mated searches that name the right person at that threshold. thresholds: FPIR -> the largest
    accepted distance. Both are NaN where there are too few searches to measure that FPIR.
    """

    tpir: dict[float, float]
    thresholds: dict[float, float]
    num_mated: int
    num_non_mated: int

    def to_dict(self) -> dict[str, Any]:
        """The numbers for JSON, which has no NaN: None instead."""
        return {
            "tpir_at_fpir": {f"{rate:g}": None if np.isnan(share) else share for rate, share in self.tpir.items()},
            "threshold_at_fpir": {f"{rate:g}": None if np.isnan(t) else t for rate, t in self.thresholds.items()},
            "num_mated": self.num_mated,
            "num_non_mated": self.num_non_mated,
        }


def open_set_distances(blocks: Blocks, same_person: SamePerson) -> OpenSetDistances:
    """The distances that decide each query's searches, from blocks as in `metrics_from_blocks`.

    Images of the query's person and camera are left out.
    """
    mate, other = (np.full(len(same_person.query_persons), value, dtype=np.float32) for value in (np.nan, np.inf))
    other_person = np.full(len(mate), -1, dtype=np.int64)
    for number, row in distance_rows(blocks, same_person):
        same, dropped = same_person.of(number)
        others = row.copy()
        others[same] = np.inf
        if len(others) > len(same):
            found = others.argmin()
            other[number], other_person[number] = others[found], same_person.gallery_persons[found]
        matches = row[same[~dropped]]
        if len(matches):
            nearest = matches.min()
            mate[number] = nearest if nearest < other[number] else np.inf
    return OpenSetDistances(mate, other, other_person)


def open_set_from_blocks(
    blocks: Blocks, same_person: SamePerson, *, fpirs: Sequence[float] = (0.01, 0.1)
) -> OpenSetMetrics:
    """TPIR at FPIR from blocks of distances.

    Mated searches are the queries with a match: right where the nearest image shows the query's person, at a distance
    of at most the threshold. Non-mated searches are all queries, with the images of their own person left out of the
    gallery, which changes nothing for a query whose person is not there: a false positive where any image is as near as
    the threshold. Of equal distances the others are nearer. An FPIR holds for galleries of this size: in a larger one
    somebody alike is found sooner.
    Raises UserError for an FPIR outside 0 to 1, and where no query has a match.
    Source: Grother and Ngan 2014 (rank 1).
    """
    distances = open_set_distances(blocks, same_person)
    mated = distances.mate[~np.isnan(distances.mate)]
    if not len(mated):
        raise no_match_error(same_person)
    searches = len(distances.other)
    thresholds = {fpir: threshold_at(distances.other, fpir) if share_of(fpir, searches) else np.nan for fpir in fpirs}
    tpir = {fpir: float((mated <= t).mean()) if not np.isnan(t) else np.nan for fpir, t in thresholds.items()}
    return OpenSetMetrics(tpir, thresholds, len(mated), searches)


def threshold_at(other: np.ndarray, fpir: float) -> float:
    """The largest threshold at which at most the share fpir of the non-mated searches (Q,) finds somebody.

    Raises UserError for a rate outside 0 to 1.
    """
    allowed = share_of(fpir, len(other))
    limit = np.partition(other, allowed)[allowed]
    return float(np.nextafter(limit, np.float32(-np.inf)))


def share_of(rate: float, count: int) -> int:
    """How many of so many are at most this share of them. Raises UserError for a rate outside 0 to 1.

    0 where one of them would be more: such a rate cannot be measured on so few.
    """
    if not 0 < rate < 1:
        raise UserError(f"rate: {rate} is not between 0 and 1: use a false positive rate such as 0.01")
    return int(rate * count + 1e-9)  # 0.29 * 100 is 28.999999999999996
