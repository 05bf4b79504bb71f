"""Verification over all pairs, and open-set search."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..retrieval.matching import SamePerson
from ..retrieval.ranking import Blocks, no_match_error, query_distances
from ..utils.errors import UserError


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
    for number, row in query_distances(blocks, same_person):
        same, dropped = same_person.gallery_images(number)
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


# Thresholds at which impostors are counted: the float32 numbers that end in ten zero bits, about 1e-4 apart.
BINS, DROPPED_BITS = 2**22, 10
ROC_POINTS = 256
BUFFER = 2**22


@dataclass(frozen=True)
class VerificationMetrics:
    """Verification over all pairs of a query and a gallery image that the filter keeps.

    eer: equal error rate. tpr: FPR -> share of genuine pairs (one person) accepted where at most that share of impostor
    pairs is; NaN where there are too few impostor pairs to measure it. thresholds: FPR -> that largest distance.
    roc: (FPR, TPR) arrays, ascending, at most 256 points up to FPR 1.
    """

    eer: float
    tpr: dict[float, float]
    thresholds: dict[float, float]
    roc: tuple[np.ndarray, np.ndarray]
    num_genuine: int
    num_impostor: int

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON, which has no NaN: None instead."""
        return {
            "eer": self.eer,
            "tpr_at_fpr": {f"{fpr:g}": None if np.isnan(tpr) else tpr for fpr, tpr in self.tpr.items()},
            "threshold_at_fpr": {f"{fpr:g}": None if np.isnan(t) else t for fpr, t in self.thresholds.items()},
            "num_genuine": self.num_genuine,
            "num_impostor": self.num_impostor,
            "roc": {"fpr": self.roc[0].tolist(), "tpr": self.roc[1].tolist()},
        }


def verification_from_blocks(
    blocks: Blocks, same_person: SamePerson, *, fprs: Sequence[float] = (1e-3, 1e-4)
) -> VerificationMetrics:
    """Verification metrics from blocks of distances, whoever makes them (as `metrics_from_blocks`).

    A pair is accepted where its distance is at most the threshold. Pairs of the query's person and camera are left out.
    TPR at FPR is exact: the smallest impostor distances are kept, 4 bytes for each that the largest FPR lets through,
    and so is every point of the curve: FPR and TPR are counted at four million thresholds, about 1e-4 of a distance
    apart. The EER is interpolated between two of them.
    Raises UserError for an FPR outside 0 to 1, and where there is no genuine or no impostor pair.
    Source: ISO/IEC 19795-1 (FPR and TPR as false and true match rates); Jain et al. 2008.
    """
    queries, size = len(same_person.query_persons), len(same_person.gallery_persons)
    num_impostor = queries * size - sum(len(same_person.gallery_images(number)[0]) for number in range(queries))
    impostors = _Impostors(kept=max((share_of(fpr, num_impostor) for fpr in fprs), default=0) + 1)
    genuine_rows = []
    for number, row in query_distances(blocks, same_person):
        same, dropped = same_person.gallery_images(number)
        genuine_rows.append(row[same[~dropped]])
        impostors.add(np.delete(row, same))
    genuine = np.sort(np.concatenate(genuine_rows)) if genuine_rows else np.empty(0, dtype=np.float32)
    if not len(genuine):
        raise no_match_error(same_person)
    if not num_impostor:
        raise UserError("no impostor pair: every image shows one person: verification needs at least two")
    false = np.cumsum(impostors.counts()) / num_impostor
    true = np.cumsum(np.bincount(_bins(genuine), minlength=BINS)) / len(genuine)
    tpr, thresholds = {}, {}
    for fpr in fprs:
        allowed = share_of(fpr, num_impostor)
        # Fewer than one false acceptance in the pairs there are: not measurable.
        limit = impostors.smallest()[allowed] if allowed else np.nan
        accepted = np.searchsorted(genuine, limit, side="left")
        tpr[fpr] = accepted / len(genuine) if allowed else np.nan
        thresholds[fpr] = float(np.nextafter(limit, np.float32(-np.inf))) if allowed else np.nan
    return VerificationMetrics(
        _equal_error(false, true), tpr, thresholds, _thinned(false, true), len(genuine), num_impostor
    )


class _Impostors:
    """Impostor distances as they come: how many fall in each bin, and the smallest of them."""

    def __init__(self, kept: int):
        self._kept = kept
        self._smallest = np.empty(0, dtype=np.float32)
        self._limit = np.float32(np.inf)
        self._counts = np.zeros(BINS, dtype=np.int64)
        self._waiting: list[np.ndarray] = []
        self._waiting_size = 0

    def add(self, distances: np.ndarray) -> None:
        """Takes some more, counted a few million at a time."""
        self._waiting.append(distances)
        self._waiting_size += len(distances)
        if self._waiting_size > BUFFER:
            self._count()

    def _count(self) -> None:
        distances = np.concatenate([*self._waiting, np.empty(0, dtype=np.float32)])
        self._waiting, self._waiting_size = [], 0
        self._counts += np.bincount(_bins(distances), minlength=BINS)
        self._smallest = np.concatenate([self._smallest, distances[np.flatnonzero(distances <= self._limit)]])
        if len(self._smallest) > self._kept:
            self._smallest = np.partition(self._smallest, self._kept - 1)[: self._kept]
            self._limit = self._smallest.max()

    def counts(self) -> np.ndarray:
        """How many fall in each bin (BINS,)."""
        self._count()
        return self._counts

    def smallest(self) -> np.ndarray:
        """The smallest, ascending, as many as are kept."""
        self._count()
        return np.sort(self._smallest)


def _bins(distances: np.ndarray) -> np.ndarray:
    """The bin of each distance, ascending with it: the leading bits of its float32 number."""
    bits = (distances + np.float32(0)).view(np.int32)  # adding 0 makes one zero of two
    ordered = bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
    return (ordered >> DROPPED_BITS) + BINS // 2


def _equal_error(false: np.ndarray, true: np.ndarray) -> float:
    """Where FPR and 1 - TPR cross, on the line between the two thresholds around the crossing."""
    after = int(np.argmax(false >= 1 - true))
    before_false, before_missed = (false[after - 1], 1 - true[after - 1]) if after else (0.0, 1.0)
    gap_before, gap_after = before_missed - before_false, false[after] - (1 - true[after])
    share = gap_before / (gap_before + gap_after)
    return float(before_false + share * (false[after] - before_false))


def _thinned(false: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The curve at FPR 0 where genuine pairs are accepted there, and at FPRs spread evenly over their logarithm."""
    smallest = false[np.argmax(false > 0)]
    wanted = np.append(0, np.geomspace(smallest, 1, ROC_POINTS - 1))
    # The last threshold at which the FPR is not above the wanted one.
    places = np.unique(np.searchsorted(false, wanted * (1 + 1e-12), side="right") - 1)
    places = places[(places >= 0) & (true[places] > 0)]
    return false[places], true[places]
