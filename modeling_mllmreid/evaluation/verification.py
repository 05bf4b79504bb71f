"""Verification over all pairs, and open-set search."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..retrieval.matching import SamePerson
from ..retrieval.points import on_cpu
from ..retrieval.ranking import Blocks, Part, no_match_error, parts
from ..utils.errors import UserError


@dataclass(frozen=True)
class OpenSetDistances:
    """Distances that decide the searches of each query.

    Args:
        mate (`np.ndarray`): (Q,) float32 distance of the nearest match if it is the nearest image; infinity if another
            person is as near, NaN if the query has no match.
        other (`np.ndarray`): (Q,) float32 distance of the nearest image of another person, which the query finds if its
            own person is not in the gallery; infinity if there is no other person.
        other_person (`np.ndarray`): (Q,) int64 person of that image, numbered as in `SamePerson`; -1 if there is none.
    """

    mate: np.ndarray
    other: np.ndarray
    other_person: np.ndarray


@dataclass(frozen=True)
class OpenSetMetrics:
    """Open-set rates as fractions of 1; NaN if there are too few searches to measure a rate.

    Args:
        tpir (`dict[float, float]`): maps an FPIR to the share of mated searches that find the right person.
        thresholds (`dict[float, float]`): maps an FPIR to the largest accepted distance.
        num_mated (`int`): searches whose person is in the gallery.
        num_non_mated (`int`): searches whose person is left out of the gallery.
    """

    tpir: dict[float, float]
    thresholds: dict[float, float]
    num_mated: int
    num_non_mated: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON; None replaces NaN."""
        return {
            "tpir_at_fpir": {f"{rate:g}": None if np.isnan(share) else share for rate, share in self.tpir.items()},
            "threshold_at_fpir": {f"{rate:g}": None if np.isnan(t) else t for rate, t in self.thresholds.items()},
            "num_mated": self.num_mated,
            "num_non_mated": self.num_non_mated,
        }


def open_set_distances(blocks: Blocks, same_person: SamePerson) -> OpenSetDistances:
    """Computes the distances that decide each query's searches, from blocks as in `metrics_from_blocks`.

    Images that the matching rule drops are left out.
    """
    mate, other = (np.full(len(same_person.query_persons), value, dtype=np.float32) for value in (np.nan, np.inf))
    other_person = np.full(len(mate), -1, dtype=np.int64)
    for part in parts(blocks, same_person):
        if not part.distances.shape[1]:
            continue
        others = without_person(part, torch.inf)
        first = others.argmin(1, keepdim=True)  # of equal images the first one
        nearest = others.gather(1, first)
        there_are = (part.there.sum(1) < others.shape[1]).cpu().numpy()
        other[part.queries] = np.where(there_are, nearest[:, 0].cpu().numpy(), np.inf)
        persons = same_person.gallery_persons[first[:, 0].cpu().numpy()]
        other_person[part.queries] = np.where(there_are, persons, -1)
        if part.images.shape[1]:
            own = part.distances.gather(1, part.images).masked_fill(~part.kept, torch.inf).amin(1, keepdim=True)
            found = own.where(own < nearest, torch.inf).where(part.kept.any(1, keepdim=True), torch.nan)
            mate[part.queries] = found[:, 0].cpu().numpy()
        del part, others  # before the next block is computed
    return OpenSetDistances(mate, other, other_person)


def without_person(part: Part, value: float) -> torch.Tensor:
    """Returns the distances (n, G) with another value for the images of each query's person."""
    own = part.distances.gather(1, part.images)
    # A query without images of its person keeps its row.
    return part.distances.scatter(1, part.images, own.masked_fill(part.there[:, :1], value))


def open_set_from_blocks(
    blocks: Blocks, same_person: SamePerson, *, fpirs: Sequence[float] = (0.01, 0.1)
) -> OpenSetMetrics:
    """Computes TPIR at FPIR from blocks of distances.

    Mated searches are the queries with a match. A mated search is right if the nearest image shows the query's person
    within the threshold. Non-mated searches are all queries against the gallery without their own person. A non-mated
    search is a false positive if any image is within the threshold. Among equal distances other people are nearer. An
    FPIR is valid for galleries of this size: a larger gallery is more likely to contain a similar person.

    Args:
        blocks (`Iterable[tuple[slice, np.ndarray | Tensor]]`): distances, as in `metrics_from_blocks`.
        same_person (`SamePerson`): the matching rule of these queries and this gallery.
        fpirs (`Sequence[float]`, defaults to `(0.01, 0.1)`): false positive identification rates.

    Returns:
        `OpenSetMetrics`: rates and thresholds.

    Raises:
        UserError: if an FPIR is not between 0 and 1, or no query has a match.

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
    """Returns the largest threshold at which at most the share fpir of the non-mated searches (Q,) finds a person.

    Raises UserError for a rate outside 0 to 1.
    """
    allowed = share_of(fpir, len(other))
    limit = np.partition(other, allowed)[allowed]
    return float(np.nextafter(limit, np.float32(-np.inf)))


def share_of(rate: float, count: int) -> int:
    """Returns the largest number of `count` that is at most the share `rate`; 0 if the rate cannot be measured.

    Raises UserError for a rate outside 0 to 1.
    """
    if not 0 < rate < 1:
        raise UserError(f"rate: {rate} is not between 0 and 1: use a false positive rate such as 0.01")
    return int(rate * count + 1e-9)  # 0.29 * 100 is 28.999999999999996


# Thresholds at which impostors are counted: the float32 numbers that end in ten zero bits, about 1e-4 apart.
BINS, DROPPED_BITS = 2**22, 10
ROC_POINTS = 256


@dataclass(frozen=True)
class VerificationMetrics:
    """Verification over all pairs of a query and a gallery image that the matching rule keeps, as fractions of 1.

    Args:
        eer (`float`): equal error rate.
        tpr (`dict[float, float]`): maps an FPR to the share of genuine pairs (same person) that are accepted; NaN if
            there are too few impostor pairs to measure it.
        thresholds (`dict[float, float]`): maps an FPR to the largest accepted distance.
        roc (`tuple[np.ndarray, np.ndarray]`): FPR and TPR, ascending, at most 256 points.
        num_genuine (`int`): number of genuine pairs.
        num_impostor (`int`): number of impostor pairs.
    """

    eer: float
    tpr: dict[float, float]
    thresholds: dict[float, float]
    roc: tuple[np.ndarray, np.ndarray]
    num_genuine: int
    num_impostor: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON; None replaces NaN."""
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
    """Computes verification metrics from blocks of distances.

    A pair is accepted if its distance is at most the threshold. Pairs that the matching rule drops are left out. TPR at
    FPR is exact: the smallest impostor distances are kept, 4 bytes for each that the largest FPR accepts. The curve is
    counted at four million thresholds, about 1e-4 of a distance apart, and the EER is interpolated between two of them.

    Args:
        blocks (`Iterable[tuple[slice, np.ndarray | Tensor]]`): distances, as in `metrics_from_blocks`.
        same_person (`SamePerson`): the matching rule of these queries and this gallery.
        fprs (`Sequence[float]`, defaults to `(1e-3, 1e-4)`): false positive rates.

    Returns:
        `VerificationMetrics`: the rates, thresholds and the curve.

    Raises:
        UserError: if an FPR is not between 0 and 1, or there is no genuine or no impostor pair.

    Source: ISO/IEC 19795-1 (FPR and TPR as false and true match rates); Jain et al. 2008.
    """
    queries, size = len(same_person.query_persons), len(same_person.gallery_persons)
    num_impostor = queries * size - int(same_person.image_counts(slice(None)).sum())
    impostors = _Impostors(kept=max((share_of(fpr, num_impostor) for fpr in fprs), default=0) + 1)
    genuine_distances = []
    for part in parts(blocks, same_person):
        genuine_distances.append(part.distances.gather(1, part.images)[part.kept].cpu().numpy())
        impostors.add(part)
        del part  # frees its block before the next one is computed
    genuine = np.sort(np.concatenate(genuine_distances)) if genuine_distances else np.empty(0, dtype=np.float32)
    if not len(genuine):
        raise no_match_error(same_person)
    if not num_impostor:
        raise UserError("no impostor pair: every image shows one person: verification needs at least two")
    false = np.cumsum(impostors.counts()) / num_impostor
    true = np.cumsum(np.bincount(_bins(torch.from_numpy(genuine)).numpy(), minlength=BINS)) / len(genuine)
    tpr, thresholds = {}, {}
    for fpr in fprs:
        allowed = share_of(fpr, num_impostor)
        # Less than one false acceptance among all pairs cannot be measured.
        limit = impostors.smallest()[allowed] if allowed else np.nan
        accepted = np.searchsorted(genuine, limit, side="left")
        tpr[fpr] = accepted / len(genuine) if allowed else np.nan
        thresholds[fpr] = float(np.nextafter(limit, np.float32(-np.inf))) if allowed else np.nan
    return VerificationMetrics(
        _equal_error(false, true), tpr, thresholds, _thinned(false, true), len(genuine), num_impostor
    )


class _Impostors:
    """Collects impostor distances where they are: their number in each bin, and the smallest of them."""

    def __init__(self, kept: int):
        self._kept = kept
        self._limit = math.inf
        self._smallest, self._counts = torch.empty(0), torch.zeros(BINS, dtype=torch.int64)

    def add(self, part: Part) -> None:
        """Adds the distances of a part, without those of the images of each query's person."""
        device, own = part.distances.device, part.distances.gather(1, part.images)[part.there]
        counts = torch.bincount(_bins(part.distances.flatten()), minlength=BINS)
        self._counts = self._counts.to(device) + counts - torch.bincount(_bins(own), minlength=BINS)
        near = _at_most(without_person(part, math.nan).flatten(), self._limit)
        self._smallest = torch.cat([self._smallest.to(device), near])
        if len(self._smallest) > self._kept:
            self._smallest = self._smallest.topk(self._kept, largest=False, sorted=False).values
            self._limit = float(self._smallest.max())

    def counts(self) -> np.ndarray:
        """Returns the number of distances in each bin, (BINS,)."""
        return self._counts.cpu().numpy()

    def smallest(self) -> np.ndarray:
        """Returns the smallest distances, ascending."""
        return self._smallest.sort().values.cpu().numpy()


def _at_most(distances: torch.Tensor, limit: float) -> torch.Tensor:
    """Returns the distances (m,) that are no larger than a limit, and not NaN."""
    if not on_cpu(distances):
        return distances[distances <= limit]
    array = distances.numpy()  # NumPy is several times as fast
    return torch.from_numpy(array[np.flatnonzero(array <= limit)])


def _bins(distances: torch.Tensor) -> torch.Tensor:
    """Returns the bin of each distance: the leading bits of its float32 number, in ascending order."""
    bits = (distances + 0).view(torch.int32)  # adding 0 turns -0 into 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered >> DROPPED_BITS) + BINS // 2


def _equal_error(false: np.ndarray, true: np.ndarray) -> float:
    """Returns the rate where FPR and 1 - TPR cross, interpolated between the two thresholds around the crossing."""
    after = int(np.argmax(false >= 1 - true))
    before_false, before_missed = (false[after - 1], 1 - true[after - 1]) if after else (0.0, 1.0)
    gap_before, gap_after = before_missed - before_false, false[after] - (1 - true[after])
    share = gap_before / (gap_before + gap_after)
    return float(before_false + share * (false[after] - before_false))


def _thinned(false: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the curve at FPR 0, if it accepts genuine pairs, and at FPRs that are evenly spaced by logarithm."""
    smallest = false[np.argmax(false > 0)]
    rates = np.append(0, np.geomspace(smallest, 1, ROC_POINTS - 1))
    # The last threshold at which the FPR is at most each rate.
    bins = np.unique(np.searchsorted(false, rates * (1 + 1e-12), side="right") - 1)
    bins = bins[(bins >= 0) & (true[bins] > 0)]
    return false[bins], true[bins]
