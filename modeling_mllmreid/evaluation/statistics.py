"""Confidence intervals and paired comparisons of retrieval metrics, with people as the independent draws.

The queries of one person succeed and fail together, so they are not independent; the people are. An interval and a
p-value come from the same `Error`: the interval excludes 0 exactly if p is below its level. `benchmarks/coverage.py`
measures the coverage by simulation.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import betainc, betaincinv, stdtr, stdtrit

from ..retrieval.matching import Ids, SamePerson
from ..utils.errors import UserError
from .metrics import RetrievalMetrics

# Fractions of 1: sums in another order differ by less.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Error:
    """The variance of a mean, and the degrees of freedom of that variance."""

    variance: float
    freedom: float

    def interval(self, mean: float, confidence: float = 0.95) -> tuple[float, float]:
        """Returns the low and high end of Student's interval around the mean."""
        half = float(stdtrit(self.freedom, (1 + confidence) / 2)) * self.variance**0.5
        return mean - half, mean + half

    def p_value(self, mean: float) -> float:
        """Returns the two-sided p-value of a true mean of 0; without variance 1 for a mean of 0, else 0."""
        if self.variance == 0:
            return float(mean == 0)
        return float(2 * stdtr(self.freedom, -abs(mean) / self.variance**0.5))

    def effective_size(self, share: float, counts: np.ndarray, confidence: float = 0.95) -> float:
        """Returns the number of independent draws of 0 or 1 whose mean is equally certain.

        `counts` are the queries of each person, (I,). The result is at most the number of queries. Without variance it
        is the number of people, or less if their counts are unequal.

        Source: Korn and Graubard 1998.
        """
        if self.variance == 0:
            return float(counts.sum() ** 2 / (counts**2).sum())
        level = (1 + confidence) / 2
        shrunk = (NormalDist().inv_cdf(level) / float(stdtrit(self.freedom, level))) ** 2
        return shrunk * min(share * (1 - share) / self.variance, float(counts.sum()))


def people_error(sums: np.ndarray, counts: np.ndarray) -> Error:
    """Computes the error of the mean sum(sums) / sum(counts) from the differences between people.

    With the weights w = counts / sum(counts), the variance is that of sum(w_i m_i), where m_i are the persons' means.
    Its residuals are corrected, so it has no bias if the variances of people are equal. The degrees of freedom are
    Satterthwaite's: I - 1 with equal counts, fewer with unequal counts.

    Args:
        sums (`np.ndarray`): (I,) sum of each person over its queries; at least two people.
        counts (`np.ndarray`): (I,) number of queries of each person.

    Returns:
        `Error`: variance and degrees of freedom.

    Source: Bell and McCaffrey 2002 (CR2), Pustejovsky and Tipton 2018.
    """
    weights = counts / counts.sum()
    concentration = float((weights**2).sum())
    residuals = (sums - sums.sum() * weights) / counts.sum()
    residuals[np.abs(residuals) <= ROUNDING * weights] = 0
    # Under variances of 1: a residual's variance is w_i^2 * own_i, and i's and j's covariance w_i w_j * (c_i + c_j).
    own, shared = 1 - 2 * weights + concentration, concentration / 2 - weights
    variance = float((residuals**2 / own).sum())
    scale = weights**2 / own
    squares = (scale**2 * (own**2 - 4 * shared**2)).sum()
    squares += 2 * scale.sum() * (scale * shared**2).sum() + 2 * (scale * shared).sum() ** 2
    return Error(variance, float((scale * own).sum() ** 2 / squares))


def combined(errors: Sequence[Error]) -> Error:
    """Returns the error of a sum of independent terms with these errors.

    The degrees of freedom are the harmonic mean of theirs, weighted by variance. Satterthwaite's, weighted by the
    squares, are too many: with a large term of 2 degrees of freedom and a small one of many, 95 % intervals cover 92 %
    instead of 94 to 97 %. With a term of one degree of freedom the harmonic mean covers at least 91 %.
    """
    variance = sum(error.variance for error in errors)
    if variance == 0:
        return errors[0]
    return Error(variance, variance / sum(error.variance / error.freedom for error in errors))


def share_interval(share: float, size: float, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the low and high end around a share of `size` independent draws, from 0 to 1. `size` may be a fraction.

    Source: Clopper and Pearson 1934.
    """
    hits, tail = share * size, (1 - confidence) / 2
    low = float(betaincinv(hits, size - hits + 1, tail)) if share > 0 else 0.0
    high = float(betaincinv(hits + 1, size - hits, 1 - tail)) if share < 1 else 1.0
    return low, high


def holds_share(truth: float, share: float, size: float, confidence: float = 0.95) -> bool:
    """Returns whether `share_interval` contains this true share, strictly between 0 and 1."""
    hits, tail = share * size, (1 - confidence) / 2
    above = share <= 0 or betainc(hits, size - hits + 1, truth) >= tail
    below = share >= 1 or betainc(hits + 1, size - hits, truth) <= 1 - tail
    return above and below


@dataclass(frozen=True)
class Interval:
    """A metric and its interval, as fractions of 1. `confidence` is the share of intervals with the true value."""

    estimate: float
    low: float
    high: float
    confidence: float

    def to_dict(self) -> dict[str, float]:
        """The fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PairedDifference:
    """A metric of model a minus that of model b, its interval (fractions of 1), and the two-sided p-value."""

    difference: float
    low: float
    high: float
    confidence: float
    p_value: float

    def to_dict(self) -> dict[str, float]:
        """The fields, for JSON."""
        return asdict(self)


def confidence_intervals(
    metrics: RetrievalMetrics, query_person_ids: Ids, *, confidence: float = 0.95
) -> dict[str, Interval]:
    """Computes the interval of each metric.

    The variance comes from the differences between people (`people_error`). The interval is that of a share of as many
    independent queries as are equally certain, so it stays between 0 and 1 and has a width even if every query
    succeeds. The gallery is fixed. With 10 people, or a metric near 0 or 1, the interval is wider than necessary.

    Args:
        metrics (`RetrievalMetrics`): the result of an evaluation.
        query_person_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`): (Q,) person ids.
        confidence (`float`, defaults to 0.95): share of intervals that contain the true value.

    Returns:
        `dict[str, Interval]`: intervals under the keys of `RetrievalMetrics.to_dict`: mAP, rank1, ..., mINP.

    Raises:
        UserError: if ids do not fit the metrics, or there are fewer than two identities.

    Example:
        >>> import numpy as np
        >>> from modeling_mllmreid import confidence_intervals, evaluate_retrieval
        >>> rng = np.random.default_rng(0)
        >>> ids, cameras = np.repeat(np.arange(10), 4), np.arange(40) % 4
        >>> features = rng.normal(size=(10, 16))[ids] + rng.normal(size=(40, 16))
        >>> metrics = evaluate_retrieval(features, features, ids, ids, cameras, cameras)
        >>> interval = confidence_intervals(metrics, ids)["mAP"]
        >>> f"mAP {interval.estimate:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
        'mAP 66.4% [46.9%, 82.5%]'

    Source: Korn and Graubard 1998.
    """
    _check_confidence(confidence)
    values = _per_query(metrics, metrics.cmc)
    sums, counts = _by_identity(values, query_person_ids)
    intervals = {}
    for key, person_sums in zip(values, sums.T, strict=True):
        estimate = float(person_sums.sum() / counts.sum())
        size = people_error(person_sums, counts).effective_size(estimate, counts, confidence)
        intervals[key] = Interval(estimate, *share_interval(estimate, size, confidence), confidence)
    return intervals


def compare(
    a: RetrievalMetrics, b: RetrievalMetrics, query_person_ids: Ids, *, confidence: float = 0.95
) -> dict[str, PairedDifference]:
    """Compares each metric of two models on the same queries, in the same order.

    Interval and p-value are Student's, of the per-query differences, with the error of `people_error`: p is below 0.05
    exactly if the 95 % interval excludes 0.

    Args:
        a (`RetrievalMetrics`): the result of model a; its ranks are compared.
        b (`RetrievalMetrics`): the result of model b.
        query_person_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`): (Q,) person ids.
        confidence (`float`, defaults to 0.95): share of intervals that contain the true difference.

    Returns:
        `dict[str, PairedDifference]`: a minus b, under the keys of `confidence_intervals`.

    Raises:
        UserError: if the queries differ, ids do not fit, or there are fewer than two identities.

    Example:
        >>> import numpy as np
        >>> from modeling_mllmreid import compare, evaluate_retrieval
        >>> rng = np.random.default_rng(0)
        >>> ids, cameras = np.repeat(np.arange(10), 4), np.arange(40) % 4
        >>> a = rng.normal(size=(10, 16))[ids] + rng.normal(size=(40, 16))
        >>> b = a + rng.normal(size=(40, 16))
        >>> ours, theirs = (evaluate_retrieval(f, f, ids, ids, cameras, cameras) for f in (a, b))
        >>> change = compare(ours, theirs, ids)["mAP"]
        >>> f"mAP {change.difference:+.1%} [{change.low:+.1%}, {change.high:+.1%}], p = {change.p_value:.4f}"
        'mAP +20.7% [+7.7%, +33.6%], p = 0.0056'
    """
    _check_confidence(confidence)
    if a.num_queries != b.num_queries:
        raise UserError(f"{a.num_queries} queries in a, {b.num_queries} in b: compare two models on the same queries")
    values_a, values_b = _per_query(a, a.cmc), _per_query(b, a.cmc)
    differing = np.flatnonzero(np.isnan(values_a["mAP"]) != np.isnan(values_b["mAP"]))
    if len(differing):
        raise UserError(
            f"query row {differing[0]} has a match in one of a and b alone ({len(differing)} such rows): "
            "evaluate both with the same queries, gallery and cameras"
        )
    differences = {key: values_a[key] - values_b[key] for key in values_a}
    sums, counts = _by_identity(differences, query_person_ids)
    paired = {}
    for key, person_sums in zip(differences, sums.T, strict=True):
        mean, error = without_rounding(person_sums.sum() / counts.sum()), people_error(person_sums, counts)
        paired[key] = PairedDifference(mean, *error.interval(mean, confidence), confidence, error.p_value(mean))
    return paired


def without_rounding(difference: float) -> float:
    """Returns the difference, or 0 if it is only a rounding error."""
    return float(difference) if abs(difference) > ROUNDING else 0.0


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UserError(f"confidence: {confidence} is not between 0 and 1: use 0.95 for 95%")


def _per_query(metrics: RetrievalMetrics, ranks: Iterable[int]) -> dict[str, np.ndarray]:
    """Returns each metric's per-query values (Q,) float64; the metric is their mean over queries with a match."""
    first = metrics.first_match_rank
    hits = {f"rank{rank}": (first <= rank).astype(np.float64) for rank in ranks}
    return {"mAP": metrics.average_precision, **hits, "mINP": metrics.inverse_negative_penalty}


def _by_identity(values: dict[str, np.ndarray], query_person_ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """Sums the values of each identity's queries with a match, (identities, metrics), and counts these queries."""
    table = np.column_stack(list(values.values()))
    persons = SamePerson(query_person_ids, query_person_ids).query_persons
    if len(persons) != len(table):
        raise UserError(f"query_person_ids: {len(persons)} ids for {len(table)} queries: give one per query")
    valid = ~np.isnan(values["mAP"])
    identities, place, counts = np.unique(persons[valid], return_inverse=True, return_counts=True)
    if len(identities) < 2:
        raise UserError(
            f"query_person_ids: {len(identities)} identity among the queries with a match: "
            "give queries of two or more, an interval comes from how they differ"
        )
    sums = np.zeros((len(identities), table.shape[1]))
    np.add.at(sums, place, table[valid])
    return sums, counts
