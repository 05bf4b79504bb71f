"""Comparing trainings over several seeds: intervals over seeds and people, paired contrasts, Holm's correction.

A new seed gives another model, a new person another question: both are random, and crossed, since every model is
asked every question. values: (S, Q), a metric's value for each seed and query, the queries the same for all; NaN where
a query has no match, then for every seed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import stdtrit

from ...evaluation.statistics import ROUNDING, Error, Interval, combined, people_error, share_interval, without_rounding
from ...utils.errors import UserError


@dataclass(frozen=True)
class Contrast:
    """A paired difference, fractions of 1, with its 95 % interval and the test's two-sided p-value.

    seed_sd: standard deviation of the difference over seeds. detectable: the smallest true difference that so many
    seeds and people would show (p < 0.05) with probability 0.8. p_value, seed_sd and detectable are NaN for one seed,
    whose interval is over people alone.
    """

    difference: float
    low: float
    high: float
    p_value: float
    seed_sd: float
    detectable: float

    def to_dict(self) -> dict[str, float | None]:
        """The fields, for JSON: None for NaN."""
        return {name: None if np.isnan(value) else float(value) for name, value in asdict(self).items()}


def interval_over_seeds(values: np.ndarray, person_ids: Sequence[int] | np.ndarray) -> Interval:
    """The mean over seeds and queries with its 95 % interval, of `contrast`'s error.

    Shares, values from 0 to 1, get the interval of a share, as in `statistics.confidence_intervals`; others Student's.
    With one seed it is over people alone.
    """
    sums, counts = _by_person(values, person_ids)
    mean = float(sums.sum() / (len(sums) * counts.sum()))
    error = _error(sums, counts)
    if np.nanmin(values) < 0 or np.nanmax(values) > 1:
        return Interval(mean, *error.interval(mean), 0.95)
    return Interval(mean, *share_interval(mean, error.effective_size(mean, counts)), 0.95)


def contrast(a: np.ndarray, b: np.ndarray, person_ids: Sequence[int] | np.ndarray) -> Contrast:
    """The mean of a less that of b, (S, Q) each, row s of both trained with the same seed.

    Interval and p-value are those of a t-test with seeds and people as crossed random factors: p is below 0.05 exactly
    where the interval leaves out 0. The variance is that of the seeds' mean differences by S plus that over people
    (`people_error`), the degrees of freedom those of `combined`. What is particular to a seed and a person counts in
    both: where that is the larger part, the interval is up to 1.4 times as wide as need be (it covers 99 %), and so it
    is where few people make most queries. Two seeds are too few where they differ more than people: it covers 91 %.
    Raises UserError for shapes and queries that differ. Source: Baayen et al. 2008 (crossed random factors).
    """
    if a.shape != b.shape:
        raise UserError(f"a has the shape {a.shape}, b {b.shape}: give the same seeds and queries")
    if (np.isnan(a) != np.isnan(b)).any():
        raise UserError("a query has a match in one of a and b alone: evaluate both with the same query and gallery")
    sums, counts = _by_person(a - b, person_ids)
    difference = without_rounding(sums.sum() / (len(sums) * counts.sum()))
    error = _error(sums, counts)
    low, high = error.interval(difference)
    if len(sums) < 2:
        return Contrast(difference, low, high, np.nan, np.nan, np.nan)
    seed_sd = _seed_variance(sums, counts) ** 0.5
    detectable = error.variance**0.5 * float(stdtrit(error.freedom, 0.975) + stdtrit(error.freedom, 0.8))
    return Contrast(difference, low, high, error.p_value(difference), seed_sd, detectable)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the given order: the family-wise error stays below the level. NaN stays NaN.

    Source: Holm 1979.
    """
    adjusted, tested = np.full(len(p_values), np.nan), [i for i, p in enumerate(p_values) if not np.isnan(p)]
    largest = 0.0
    for place, index in enumerate(sorted(tested, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(tested) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted.tolist()


def _by_person(values: np.ndarray, person_ids: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sums (S, I), number of queries (I,)) over the queries with a match."""
    values, persons = np.asarray(values, dtype=np.float64), np.asarray(person_ids)
    if values.ndim != 2 or values.shape[1] != len(persons):
        raise UserError(f"values have the shape {values.shape} for {len(persons)} ids: give (seeds, queries)")
    missing = np.isnan(values)
    if (missing.any(0) != missing.all(0)).any():
        raise UserError("a query has a match for some seeds alone: evaluate all with the same query and gallery")
    valid = ~missing.all(0)
    people, place, counts = np.unique(persons[valid], return_inverse=True, return_counts=True)
    if len(people) < 2:
        raise UserError(f"{len(people)} person with a match: give two or more, an interval comes from how they differ")
    sums = np.zeros((len(people), len(values)))
    np.add.at(sums, place, values[:, valid].T)
    return sums.T, counts


def _error(sums: np.ndarray, counts: np.ndarray) -> Error:
    """The error of the mean over seeds and queries: people's, and with two seeds or more that of the seeds' means."""
    of_people, seeds = people_error(sums.mean(0), counts), len(sums)
    return of_people if seeds < 2 else combined([Error(_seed_variance(sums, counts) / seeds, seeds - 1), of_people])


def _seed_variance(sums: np.ndarray, counts: np.ndarray) -> float:
    """The variance of the seeds' means."""
    means = sums.sum(1) / counts.sum()
    residuals = means - means.mean()
    residuals[np.abs(residuals) <= ROUNDING] = 0
    return float((residuals**2).sum() / (len(means) - 1))
