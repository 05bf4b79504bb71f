"""Merging of images into groups of one person: always the two groups that are the most likely to be one person."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .neighbourhoods import Candidates

# Columns of the evidence of two groups.
DISTANCE, SIMILARITY, SMALLER, LARGER = range(4)


@dataclass(frozen=True)
class Pair:
    """Two groups that are not merged.

    Args:
        first (`int`): Index of the first image of one group.
        second (`int`): Index of the first image of the other, which is larger.
        score (`float`): Log odds that both are one person.
    """

    first: int
    second: int
    score: float


Score = Callable[[np.ndarray], np.ndarray]
MayMerge = Callable[[int, int, float, np.ndarray], bool]


class Groups:
    """Groups of images, which merge.

    Args:
        features (`np.ndarray`): (N, D) L2-normalised features, float32.
        candidates (`Candidates`): Pairs of images that may show one person.
        start (`np.ndarray`): (N,) int64 for each image the index of the first image of its group.
    """

    def __init__(self, features: np.ndarray, candidates: Candidates, start: np.ndarray):
        self.features = features
        self.root = start.copy()
        self.members: dict[int, np.ndarray] = {}
        self._sums: dict[int, np.ndarray] = {}
        self._others: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        size = len(features)
        ends = np.concatenate([candidates.first, candidates.second])
        others = np.concatenate([candidates.second, candidates.first])
        order = np.lexsort((others, ends))
        self._starts = np.searchsorted(ends[order], np.arange(size + 1))
        self._columns = others[order]
        self._values = np.concatenate([candidates.similarity, candidates.similarity])[order].astype(np.float64)
        order = np.argsort(start, kind="stable")
        # The first image of a group is the smallest.
        for images in np.split(order, np.flatnonzero(np.diff(start[order])) + 1) if size else []:
            self.members[first := int(images[0])] = images
            if len(images) > 1:
                self._sums[first] = features[images].astype(np.float64).sum(0)
                pieces = [slice(self._starts[image], self._starts[image + 1]) for image in images]
                columns = np.concatenate([self._columns[piece] for piece in pieces])
                self._others[first] = columns, np.concatenate([self._values[piece] for piece in pieces])

    def sum_of(self, group: int) -> np.ndarray:
        """Returns the sum of a group's features, (D,)."""
        stored = self._sums.get(group)
        return self.features[group].astype(np.float64) if stored is None else stored

    def evidence(self, group: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the other groups that have a candidate pair with a group, (n,), and the evidence, (n, 4).

        The columns are the mean distance and the mean similarity over all pairs of two images, and the natural
        logarithms of the sizes of the smaller and the larger group.
        """
        if group in self._others:
            columns, values = self._others[group]
        else:
            piece = slice(self._starts[group], self._starts[group + 1])
            columns, values = self._columns[piece], self._values[piece]
        groups, places = np.unique(self.root[columns], return_inverse=True)
        sums = np.bincount(places, weights=values, minlength=len(groups))
        kept = groups != group
        groups, sums = groups[kept], sums[kept]
        self._others[group] = groups, sums
        if not len(groups):
            return groups, np.empty((0, 4))
        own, total = len(self.members[group]), self.sum_of(group)
        sizes = np.array([len(self.members[other]) for other in groups.tolist()])
        alone, products = sizes == 1, np.empty(len(groups))
        products[alone] = self.features[groups[alone]] @ total.astype(np.float32)
        if not alone.all():
            products[~alone] = np.stack([self._sums[other] for other in groups[~alone].tolist()]) @ total
        distance = 1 - products / (own * sizes)
        logs = np.log(np.minimum(sizes, own)), np.log(np.maximum(sizes, own))
        return groups, np.column_stack([distance, sums / (own * sizes), *logs])

    def merge(self, first: int, second: int) -> int:
        """Joins two groups; returns the index of the first image of the result."""
        kept, gone = min(first, second), max(first, second)
        columns = [self._others[group] for group in (kept, gone)]
        self._others[kept] = np.concatenate([c for c, _ in columns]), np.concatenate([v for _, v in columns])
        self._sums[kept] = self.sum_of(kept) + self.sum_of(gone)
        self.root[self.members[gone]] = kept
        self.members[kept] = np.concatenate([self.members[kept], self.members.pop(gone)])
        self._others.pop(gone)
        self._sums.pop(gone, None)
        return kept


def merge_groups(groups: Groups, score: Score, least: float, may_merge: MayMerge) -> list[Pair]:
    """Merges the two groups of highest score until none has the least score.

    Equal scores are ordered by the first images of the groups.

    Args:
        groups (`Groups`): The groups at the start; they are changed.
        score (`Callable`): Maps evidence (n, 4), as in `Groups.evidence`, to log odds (n,).
        least (`float`): Pairs of a lower score are left out.
        may_merge (`Callable`): Whether two groups merge, given their first images, score and evidence (4,). Those that
            do not are returned.

    Returns:
        `list[Pair]`: The pairs of groups at the end that have at least this score, highest first.
    """
    heap: list[tuple[float, int, int, int, int, tuple[float, ...]]] = []
    versions: dict[int, int] = dict.fromkeys(groups.members, 0)

    def push(group: int, *, later: bool) -> None:
        others, evidence = groups.evidence(group)
        scores = score(evidence)
        for place in np.flatnonzero(scores >= least).tolist():
            other = int(others[place])
            if later and other < group:
                continue  # the other group pushes the pair
            one, two = min(group, other), max(group, other)
            entry = (-float(scores[place]), one, two, versions[one], versions[two], tuple(evidence[place].tolist()))
            heapq.heappush(heap, entry)

    for group in list(groups.members):
        push(group, later=True)
    left = []
    while heap:
        negative, one, two, version_one, version_two, evidence = heapq.heappop(heap)
        if versions.get(one) != version_one or versions.get(two) != version_two:
            continue
        if may_merge(one, two, -negative, np.array(evidence)):
            kept = groups.merge(one, two)
            del versions[max(one, two)]
            versions[kept] += 1
            push(kept, later=False)
        else:
            left.append((Pair(one, two, -negative), version_one, version_two))
    return [pair for pair, a, b in left if versions.get(pair.first) == a and versions.get(pair.second) == b]
