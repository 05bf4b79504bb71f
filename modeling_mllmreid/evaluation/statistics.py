"""How sure a retrieval metric is: confidence intervals, and the paired comparison of two models, by identity.

The queries of one person succeed and fail together, so they are no independent draws: identities are resampled, never
single queries.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np

from ..errors import UserError
from ..retrieval.same_person import Ids, SamePerson
from .metrics import RetrievalMetrics

# Resamples times identities that are worked on at once: 8 MiB for each array of counts.
CHUNK = 2**20


@dataclass(frozen=True)
class Interval:
    """A metric and its percentile interval, fractions of 1. confidence: the share of intervals that hold the truth."""

    estimate: float
    low: float
    high: float
    confidence: float

    def to_dict(self) -> dict[str, float]:
        """The fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class PairedDifference:
    """A metric of model a less that of model b, its percentile interval (fractions of 1), and the two-sided p-value."""

    difference: float
    low: float
    high: float
    confidence: float
    p_value: float

    def to_dict(self) -> dict[str, float]:
        """The fields, for JSON."""
        return asdict(self)


def confidence_intervals(
    metrics: RetrievalMetrics,
    query_person_ids: Ids,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, Interval]:
    """The interval of each metric under the keys of `RetrievalMetrics.to_dict`: mAP, rank1, ..., mINP.

    query_person_ids: (Q,) integers or strings. As many identities as there are get drawn with replacement, each with
    all its queries; a metric is then the sum over the drawn queries by their number. Queries without a match are left
    out, as from the metrics. The gallery stays as it is.
    Raises UserError for ids that do not fit the metrics, and for fewer than two identities.
    Source: Field and Welsh 2007 (cluster bootstrap), Davison and Hinkley 1997 (ratios, percentile interval).
    """
    values = _values_of_queries(metrics, metrics.cmc)
    sums, counts = _by_identity(values, query_person_ids)
    low, high = _interval(sums, counts, confidence, resamples, np.random.default_rng(seed))
    estimates = sums.sum(0) / counts.sum()
    return {
        key: Interval(float(estimates[i]), float(low[i]), float(high[i]), confidence) for i, key in enumerate(values)
    }


def compare(
    a: RetrievalMetrics,
    b: RetrievalMetrics,
    query_person_ids: Ids,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, PairedDifference]:
    """Each metric of model a less that of model b on the same queries, under the keys of `confidence_intervals`.

    The ranks are those of `a`. The interval is the cluster bootstrap of the queries' differences. The p-value is that
    of a permutation test: were the models alike, a and b could change places in all the queries of an identity, so the
    signs of the identities' differences are flipped at random `resamples` times;
    p = (1 + flips at least as far from 0) / (1 + flips).
    Raises UserError for metrics of different queries, for ids that do not fit, and for fewer than two identities.
    Source: Fisher 1935 (sign flips), Phipson and Smyth 2010 (the p-value is never 0).
    """
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
    rng = np.random.default_rng(seed)
    low, high = _interval(sums, counts, confidence, resamples, rng)
    p_values = _sign_flip_p_values(sums, resamples, rng)
    means = sums.sum(0) / counts.sum()
    return {
        key: PairedDifference(float(means[i]), float(low[i]), float(high[i]), confidence, float(p_values[i]))
        for i, key in enumerate(differences)
    }


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


def _interval(
    sums: np.ndarray, counts: np.ndarray, confidence: float, resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high ends (metrics,) of the percentile interval of sums (C, metrics) by counts (C,) over C identities.

    A draw of identities is the number of times that each is in it, so that its sums are one matrix product.
    """
    if not 0 < confidence < 1:
        raise UserError(f"confidence: {confidence} is not between 0 and 1: use 0.95 for 95%")
    if resamples < 1:
        raise UserError(f"resamples: {resamples} is no number of draws: use 1 or more, 10,000 for a paper")
    size, table = len(counts), np.column_stack([sums, counts])
    means = np.empty((resamples, sums.shape[1]))
    for rows in _chunks(resamples, size):
        number = rows.stop - rows.start
        drawn = rng.integers(size, size=(number, size)) + size * np.arange(number)[:, None]
        times = np.bincount(drawn.ravel(), minlength=number * size).reshape(number, size)
        totals = times @ table
        means[rows] = totals[:, :-1] / totals[:, -1:]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def _sign_flip_p_values(sums: np.ndarray, flips: int, rng: np.random.Generator) -> np.ndarray:
    """Two-sided p-values (metrics,) of the identities' summed differences (C, metrics)."""
    total = sums.sum(0)
    # Sums that are equal but for the order of their terms count as equal.
    bar = np.abs(total) - 1e-12 * np.abs(sums).sum(0)
    exceeding = np.zeros(sums.shape[1])
    for rows in _chunks(flips, len(sums)):
        kept = rng.integers(2, size=(rows.stop - rows.start, len(sums)), dtype=np.int8)
        exceeding += (np.abs(2 * (kept @ sums) - total) >= bar).sum(0)
    return (1 + exceeding) / (1 + flips)


def _chunks(rows: int, width: int) -> Iterator[slice]:
    """Slices of the rows of a table of this width, CHUNK entries each."""
    step = max(CHUNK // width, 1)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))
