"""Comparing trainings over several seeds: intervals over seeds and people, paired contrasts, Holm's correction.

A new seed gives another model, a new person another question: both are random, and crossed, since every model is
asked every question. values: (S, Q), a metric's value for each seed and query, the queries the same for all; NaN where
a query has no match, then for every seed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from ..errors import UserError
from .statistics import Interval


@dataclass(frozen=True)
class Contrast:
    """A paired difference, fractions of 1, with its bootstrap interval and the test's two-sided p-value.

    seed_sd: standard deviation of the difference over seeds. detectable: the smallest true difference that so many
    seeds and people would show (p < 0.05) with probability 0.8. p_value, seed_sd and detectable are NaN for one seed.
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


def interval_over_seeds(
    values: np.ndarray, person_ids: Sequence[int] | np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """The mean over seeds and queries with its 95 % interval: seeds and people are both drawn with replacement.

    With few seeds the interval is too narrow, as any bootstrap of so few is; with one it is that over people alone.
    Source: Owen 2007, "The pigeonhole bootstrap"; people with all their queries as in `statistics`.
    """
    sums, counts = _by_person(values, person_ids)
    low, high = _bootstrap(sums, counts, resamples, seed)
    return Interval(float(sums.sum() / (len(sums) * counts.sum())), low, high, 0.95)


def contrast(
    a: np.ndarray, b: np.ndarray, person_ids: Sequence[int] | np.ndarray, *, resamples: int = 2000, seed: int = 0
) -> Contrast:
    """The mean of a less that of b, (S, Q) each, row s of both trained with the same seed.

    The interval is `interval_over_seeds` of the differences. The p-value is that of a t-test with seeds and people as
    crossed random factors: the variance is that of the seeds' mean differences by S plus that of the people's by their
    number, the degrees of freedom Satterthwaite's. What seeds and people have in common counts in both: on the safe
    side.
    Raises UserError for shapes that differ. Source: Satterthwaite 1946; Baayen et al. 2008 (crossed random factors).
    """
    if a.shape != b.shape:
        raise UserError(f"a has the shape {a.shape}, b {b.shape}: give the same seeds and queries")
    from scipy import stats

    sums, counts = _by_person(a - b, person_ids)
    low, high = _bootstrap(sums, counts, resamples, seed)
    of_seeds = sums.sum(1) / counts.sum()
    difference = float(of_seeds.mean())
    seeds, people = len(sums), len(counts)
    if seeds < 2:
        return Contrast(difference, low, high, np.nan, np.nan, np.nan)
    of_people = (sums.mean(0) - difference * counts) / counts.mean()
    parts = np.array([of_seeds.var(ddof=1) / seeds, of_people.var(ddof=1) / people])
    variance = parts.sum()
    if variance == 0:
        return Contrast(difference, low, high, 1.0 if difference == 0 else 0.0, 0.0, 0.0)
    freedom = variance**2 / (parts**2 / np.array([seeds - 1, people - 1])).sum()
    error = float(np.sqrt(variance))
    p_value = 2 * float(stats.t.sf(abs(difference) / error, freedom))
    detectable = error * float(stats.t.ppf(0.975, freedom) + stats.t.ppf(0.8, freedom))
    return Contrast(difference, low, high, p_value, float(of_seeds.std(ddof=1)), detectable)


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


def _bootstrap(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """The 2.5 % and 97.5 % quantiles over draws of seeds and people."""
    rng = np.random.default_rng(seed)
    seeds, people = sums.shape
    of_seeds = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples)
    of_people = rng.multinomial(people, np.full(people, 1 / people), size=resamples)
    totals = ((of_seeds @ sums) * of_people).sum(1)
    low, high = np.quantile(totals / (seeds * (of_people @ counts)), [0.025, 0.975])
    return float(low), float(high)
