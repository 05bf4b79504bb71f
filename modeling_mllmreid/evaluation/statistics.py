"""How sure a retrieval metric is: confidence intervals, and the paired comparison of two models, by identity.

The queries of one person succeed and fail together, so they are no independent draws: the people are, as in
`clusters`. Coverage by simulation: `benchmarks/coverage.py`.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np

from ..errors import UserError
from ..retrieval.same_person import Ids, SamePerson
from .clusters import ROUNDING, people_error, share_interval
from .metrics import RetrievalMetrics


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
