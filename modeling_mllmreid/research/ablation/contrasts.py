"""Comparison of trainings over several seeds: intervals over seeds and people, paired contrasts, Holm's correction.

Seeds and people are crossed random factors: every model of a seed answers the queries of every person. Values are
(S, Q): a metric for each seed and query, with equal queries for all seeds. A query without a match has NaN for every
seed.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import stdtrit

from ...evaluation.statistics import ROUNDING, Error, Interval, combined, people_error, share_interval, without_rounding
from ...utils.errors import UserError

CLAIM = 0.031  # The paper's gain in mAP, on MSMT17.
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Contrast:
    """A paired difference, fractions of 1, with its 95 % interval and the test's two-sided p-value.

    Args:
        difference (`float`): Mean of a minus mean of b.
        low (`float`): Lower end of the interval.
        high (`float`): Upper end of the interval.
        p_value (`float`): Two-sided p-value; NaN for one seed.
        seed_sd (`float`): Standard deviation of the difference over seeds; NaN for one seed.
        detectable (`float`): Smallest true difference that this number of seeds and people shows (p < 0.05) with
            probability 0.8; NaN for one seed.
        seeds_for_claim (`float`): Number of seeds with which `detectable` would be the paper's gain of 3.1 points or
            less, if seeds and people differ as much as here; NaN for one seed, and where 1,000 are too few, so that
            more people are needed.
    """

    difference: float
    low: float
    high: float
    p_value: float
    seed_sd: float
    detectable: float
    seeds_for_claim: float

    def to_dict(self) -> dict[str, float | None]:
        """The fields, for JSON: None for NaN."""
        return {name: None if np.isnan(value) else float(value) for name, value in asdict(self).items()}


def interval_over_seeds(values: np.ndarray, person_ids: Sequence[int] | np.ndarray) -> Interval:
    """Computes the mean over seeds and queries with its 95 % interval, from the error of `contrast`.

    Args:
        values (`np.ndarray`): (S, Q), a metric for each seed and query.
        person_ids (`Sequence[int]` or `np.ndarray`): (Q,), the person of each query.

    Returns:
        `Interval`: For values from 0 to 1 the interval of a share, as in `statistics.confidence_intervals`; for others
        Student's interval. With one seed the interval only covers people.

    Raises:
        UserError: For shapes that do not fit, fewer than two people, and a query with a match for some seeds only.
    """
    sums, counts = _by_person(values, person_ids)
    mean = float(sums.sum() / (len(sums) * counts.sum()))
    error = _error(sums, counts)
    if np.nanmin(values) < 0 or np.nanmax(values) > 1:
        return Interval(mean, *error.interval(mean), 0.95)
    return Interval(mean, *share_interval(mean, error.effective_size(mean, counts)), 0.95)


def contrast(a: np.ndarray, b: np.ndarray, person_ids: Sequence[int] | np.ndarray) -> Contrast:
    """Computes the mean of a minus the mean of b, with a t-test that has seeds and people as crossed random factors.

    p is below 0.05 exactly where the interval excludes 0. The variance is that of the seeds' mean differences divided
    by S, plus that over people (`people_error`); the degrees of freedom are those of `combined`. The interaction of
    seed and person counts in both: where it dominates, or where few people make most queries, the interval is up to
    1.4 times too wide (it covers 99 %). Two seeds are too few where seeds differ more than people: it covers 91 %.

    Args:
        a (`np.ndarray`): (S, Q), a metric for each seed and query.
        b (`np.ndarray`): (S, Q); row s of a and b has the same seed.
        person_ids (`Sequence[int]` or `np.ndarray`): (Q,), the person of each query.

    Returns:
        `Contrast`: The difference with its interval and test.

    Raises:
        UserError: For shapes or queries that differ between a and b, and as `interval_over_seeds`.

    Source: Baayen et al. 2008, "Mixed-effects modeling with crossed random effects for subjects and items".
    """
    if a.shape != b.shape:
        raise UserError(f"a has the shape {a.shape}, b {b.shape}: give the same seeds and queries")
    if (np.isnan(a) != np.isnan(b)).any():
        raise UserError("a query has a match in only one of a and b: evaluate both with the same query and gallery")
    sums, counts = _by_person(a - b, person_ids)
    difference = without_rounding(sums.sum() / (len(sums) * counts.sum()))
    error = _error(sums, counts)
    low, high = error.interval(difference)
    if len(sums) < 2:
        return Contrast(difference, low, high, *[np.nan] * 4)
    p_value, seed_sd = error.p_value(difference), _seed_variance(sums, counts) ** 0.5

    def detectable(seeds: int) -> float:
        error = _error(sums, counts, seeds)
        return float(error.variance**0.5 * (stdtrit(error.freedom, 0.975) + stdtrit(error.freedom, 0.8)))

    enough = 2 + bisect_left(range(2, MOST_SEEDS + 1), True, key=lambda seeds: detectable(seeds) <= CLAIM)
    seeds_for_claim = enough if enough <= MOST_SEEDS else np.nan
    return Contrast(difference, low, high, p_value, seed_sd, detectable(len(sums)), seeds_for_claim)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values so that the family-wise error stays below the level.

    Args:
        p_values (`Sequence[float]`): The p-values; NaN stays NaN and does not count.

    Returns:
        `list[float]`: The adjusted p-values, in the order of the input.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure".
    """
    adjusted, tested = np.full(len(p_values), np.nan), [i for i, p in enumerate(p_values) if not np.isnan(p)]
    largest = 0.0
    for rank, index in enumerate(sorted(tested, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted.tolist()


def _by_person(values: np.ndarray, person_ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sums (S, I), number of queries (I,)) over the queries with a match."""
    values, persons = np.asarray(values, dtype=np.float64), np.asarray(person_ids)
    if values.ndim != 2 or values.shape[1] != len(persons):
        raise UserError(f"values have the shape {values.shape} for {len(persons)} ids: give (seeds, queries)")
    missing = np.isnan(values)
    if (missing.any(0) != missing.all(0)).any():
        raise UserError("a query has a match for some seeds only: evaluate all with the same query and gallery")
    valid = ~missing.all(0)
    people, positions, counts = np.unique(persons[valid], return_inverse=True, return_counts=True)
    if len(people) < 2:
        raise UserError(f"{len(people)} person with a match: give two or more, an interval comes from how they differ")
    sums = np.zeros((len(people), len(values)))
    np.add.at(sums, positions, values[:, valid].T)
    return sums.T, counts


def _error(sums: np.ndarray, counts: np.ndarray, seeds: int | None = None) -> Error:
    """The error of the mean: over people, and with two or more seeds also over the means of the seeds.

    With `seeds`, that of so many seeds with the same variance.
    """
    over_people, seeds = people_error(sums.mean(0), counts), seeds or len(sums)
    return over_people if seeds < 2 else combined([Error(_seed_variance(sums, counts) / seeds, seeds - 1), over_people])


def _seed_variance(sums: np.ndarray, counts: np.ndarray) -> float:
    """The variance of the seeds' means."""
    means = sums.sum(1) / counts.sum()
    residuals = means - means.mean()
    residuals[np.abs(residuals) <= ROUNDING] = 0
    return float((residuals**2).sum() / (len(means) - 1))
