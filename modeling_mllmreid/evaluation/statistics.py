"""Confidence intervals and paired comparisons of retrieval metrics: people are the independent draws.

An interval and a p-value both come from one `Error`, so that an interval leaves out 0 exactly where p is below its
level.

The queries of one person succeed and fail together, so they are no independent draws: the people are, as in
`clusters`. Coverage by simulation: `benchmarks/coverage.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import betainc, betaincinv, stdtr, stdtrit

from ..retrieval.matching import Ids, SamePerson
from ..utils.errors import UserError
from .metrics import RetrievalMetrics

# Fractions of 1: as far apart are numbers that are equal but for the order of their sums.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Error:
    """The variance of a mean, and the degrees of freedom of that variance."""

    variance: float
    freedom: float

    def interval(self, mean: float, confidence: float = 0.95) -> tuple[float, float]:
        """Low and high end of Student's interval around the mean."""
        half = float(stdtrit(self.freedom, (1 + confidence) / 2)) * self.variance**0.5
        return mean - half, mean + half

    def p_value(self, mean: float) -> float:
        """Two-sided, of a true mean of 0; without any variance 1 for a mean of 0, else 0."""
        if self.variance == 0:
            return float(mean == 0)
        return float(2 * stdtr(self.freedom, -abs(mean) / self.variance**0.5))

    def effective_size(self, share: float, counts: np.ndarray, confidence: float = 0.95) -> float:
        """As many independent draws of 0 or 1 give a mean that is this sure, the degrees of freedom counted in.

        counts: (I,) queries of each person. Never more than there are queries; without any variance as many as there
        are people, the fewer the more unequal their counts. Source: Korn and Graubard 1998.
        """
        if self.variance == 0:
            return float(counts.sum() ** 2 / (counts**2).sum())
        level = (1 + confidence) / 2
        shrunk = (NormalDist().inv_cdf(level) / float(stdtrit(self.freedom, level))) ** 2
        return shrunk * min(share * (1 - share) / self.variance, float(counts.sum()))


def people_error(sums: np.ndarray, counts: np.ndarray) -> Error:
    """The error of the mean sum(sums) / sum(counts), from how far people are from it.

    sums: (I,) each person's sum over its queries, counts: (I,) how many these are; I at least 2. With the weights
    w = counts / sum(counts), the variance is that of sum(w_i m_i), m_i the persons' means, from residuals that are
    corrected so that it has no bias where people differ by equal variances; the degrees of freedom are Satterthwaite's
    under the same variances: I - 1 with equal counts, fewer with unequal ones, as few people then decide.
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
    """The error of a mean whose independent parts have these errors.

    Its degrees of freedom are the harmonic mean of theirs, weighted by their variances. Satterthwaite's, weighted by
    the squares, are more: with a large part of 2 degrees of freedom and a small one of many, 95 % intervals by these
    cover 92 %, and by the mean 94 to 97 %; with a part of one degree of freedom no less than 91 %.
    """
    variance = sum(error.variance for error in errors)
    if variance == 0:
        return errors[0]
    return Error(variance, variance / sum(error.variance / error.freedom for error in errors))


def share_interval(share: float, size: float, confidence: float = 0.95) -> tuple[float, float]:
    """Low and high end around a share of so many independent draws, which may be a fraction, within 0 and 1.

    Source: Clopper and Pearson 1934.
    """
    hits, tail = share * size, (1 - confidence) / 2
    low = float(betaincinv(hits, size - hits + 1, tail)) if share > 0 else 0.0
    high = float(betaincinv(hits + 1, size - hits, 1 - tail)) if share < 1 else 1.0
    return low, high


def holds_share(truth: float, share: float, size: float, confidence: float = 0.95) -> bool:
    """Whether `share_interval` holds this truth, strictly between 0 and 1."""
    hits, tail = share * size, (1 - confidence) / 2
    above = share <= 0 or betainc(hits, size - hits + 1, truth) >= tail
    below = share >= 1 or betainc(hits + 1, size - hits, truth) <= 1 - tail
    return above and below


@dataclass(frozen=True)
class Interval:
    """A metric and its interval, fractions of 1. confidence: the share of intervals that hold the truth."""

    estimate: float
    low: float
    high: float
    confidence: float

    def to_dict(self) -> dict[str, float]:
        """The fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PairedDifference:
    """A metric of model a less that of model b, its interval (fractions of 1), and the two-sided p-value."""

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
    """The interval of each metric under the keys of `RetrievalMetrics.to_dict`: mAP, rank1, ..., mINP.

    query_person_ids: (Q,) integers or strings. A metric is the mean over the queries with a match; its variance comes
    from how people differ (`people_error`), its interval is that of a share with as many independent queries as would
    be as sure: it stays within 0 and 1, and is no point where every query succeeds. The gallery stays as it is.
    With 10 people, or a metric near 0 or 1, it is wider than need be.
    Raises UserError for ids that do not fit the metrics, and for fewer than two identities.
    Source: Korn and Graubard 1998.
    """
    _check_confidence(confidence)
    values = _values_of_queries(metrics, metrics.cmc)
    sums, counts = _by_identity(values, query_person_ids)
    found = {}
    for key, of_people in zip(values, sums.T, strict=True):
        estimate = float(of_people.sum() / counts.sum())
        size = people_error(of_people, counts).effective_size(estimate, counts, confidence)
        found[key] = Interval(estimate, *share_interval(estimate, size, confidence), confidence)
    return found


def compare(
    a: RetrievalMetrics, b: RetrievalMetrics, query_person_ids: Ids, *, confidence: float = 0.95
) -> dict[str, PairedDifference]:
    """Each metric of model a less that of model b on the same queries, under the keys of `confidence_intervals`.

    The ranks are those of `a`. Interval and p-value are Student's, of the queries' differences, with the variance and
    the degrees of freedom of `people_error`: p is below 0.05 exactly where the 95 % interval leaves out 0.
    Raises UserError for metrics of different queries, for ids that do not fit, and for fewer than two identities.
    """
    _check_confidence(confidence)
    if a.num_queries != b.num_queries:
        raise UserError(f"{a.num_queries} queries in a, {b.num_queries} in b: compare two models on the same queries")
    values_a, values_b = _values_of_queries(a, a.cmc), _values_of_queries(b, a.cmc)
    differing = np.flatnonzero(np.isnan(values_a["mAP"]) != np.isnan(values_b["mAP"]))
    if len(differing):
        raise UserError(
            f"query row {differing[0]} has a match in one of a and b alone ({len(differing)} such rows): "
            "evaluate both with the same queries, gallery and cameras"
        )
    differences = {key: values_a[key] - values_b[key] for key in values_a}
    sums, counts = _by_identity(differences, query_person_ids)
    found = {}
    for key, of_people in zip(differences, sums.T, strict=True):
        mean, error = without_rounding(of_people.sum() / counts.sum()), people_error(of_people, counts)
        found[key] = PairedDifference(mean, *error.interval(mean, confidence), confidence, error.p_value(mean))
    return found


def without_rounding(difference: float) -> float:
    """A difference, 0 where it is one of rounding alone."""
    return float(difference) if abs(difference) > ROUNDING else 0.0


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UserError(f"confidence: {confidence} is not between 0 and 1: use 0.95 for 95%")


def _values_of_queries(metrics: RetrievalMetrics, ranks: Iterable[int]) -> dict[str, np.ndarray]:
    """Metric -> its value for each query (Q,) float64. The metric is their mean where mAP's, the AP, is not NaN."""
    first = metrics.first_match_rank
    hits = {f"rank{rank}": (first <= rank).astype(np.float64) for rank in ranks}
    return {"mAP": metrics.average_precision, **hits, "mINP": metrics.inverse_negative_penalty}


def _by_identity(values: dict[str, np.ndarray], query_person_ids: Ids) -> tuple[np.ndarray, np.ndarray]:
    """Over the queries with a match: each identity's sums (identities, metrics), and its number of queries."""
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
