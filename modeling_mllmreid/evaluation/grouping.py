"""Measures of a grouping of crops against the people that they show: ARI, NMI, pairwise precision and recall."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..utils.errors import UserError


@dataclass(frozen=True)
class GroupingMetrics:
    """How well groups agree with people; every value is a share of 1.

    Args:
        ari (`float`): adjusted Rand index: 1 for the same groups, 0 on average for random ones; it can be negative.
        nmi (`float`): mutual information of group and person, divided by the mean of their entropies.
        precision (`float`): share of the pairs of crops in one group that show one person; NaN without such a pair.
        recall (`float`): share of the pairs of crops of one person that are in one group; NaN without such a pair.
        groups (`int`): number of groups.
    """

    ari: float
    nmi: float
    precision: float
    recall: float
    groups: int


def grouping_metrics(groups: Sequence[int] | np.ndarray, persons: Sequence[int] | np.ndarray) -> GroupingMetrics:
    """Compares groups with people.

    Args:
        groups (`Sequence[int]` or `np.ndarray`): (N,) the group of each crop, any numbers.
        persons (`Sequence[int]` or `np.ndarray`): (N,) the person of each crop, any numbers.

    Returns:
        `GroupingMetrics`: Two groupings without a difference have an ARI and an NMI of 1, also if they are trivial.

    Raises:
        UserError: There is no crop, or the lengths differ.

    Source: Hubert and Arabie 1985 (ARI); Strehl and Ghosh 2002 (NMI, here with the arithmetic mean).
    """
    groups, persons = np.asarray(groups), np.asarray(persons)
    if groups.ndim != 1 or groups.shape != persons.shape or not len(groups):
        raise UserError(f"groups {groups.shape} and persons {persons.shape}: give one number of each per crop")
    group = np.unique(groups, return_inverse=True)[1]
    person = np.unique(persons, return_inverse=True)[1]
    people = int(person.max()) + 1
    cells = np.unique(group.astype(np.int64) * people + person, return_counts=True)[1]
    group_sizes, person_sizes = np.bincount(group), np.bincount(person)
    both, in_groups, of_people = (_pairs(counts) for counts in (cells, group_sizes, person_sizes))
    every = _pairs(np.array([len(groups)]))
    # The products of two numbers of pairs exceed int64; Python's integers are exact.
    above = both * every - in_groups * of_people
    below = (in_groups + of_people) * every - 2 * in_groups * of_people
    information = _entropy(group_sizes) + _entropy(person_sizes) - _entropy(cells)
    mean_entropy = (_entropy(group_sizes) + _entropy(person_sizes)) / 2
    return GroupingMetrics(
        ari=2 * above / below if below else 1.0,
        nmi=min(max(information / mean_entropy, 0.0), 1.0) if mean_entropy > 0 else 1.0,
        precision=both / in_groups if in_groups else float("nan"),
        recall=both / of_people if of_people else float("nan"),
        groups=len(group_sizes),
    )


def _pairs(counts: np.ndarray) -> int:
    """Returns the number of pairs of two crops in the same cell."""
    return sum(count * (count - 1) // 2 for count in counts.tolist())


def _entropy(counts: np.ndarray) -> float:
    """Returns the entropy of shares, in nats."""
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())
