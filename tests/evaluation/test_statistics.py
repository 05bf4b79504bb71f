"""Intervals and paired comparisons by identity: a case by hand, known tests, coverage where queries depend."""

import json

import numpy as np
import pytest
from scipy import stats

from modeling_mllmreid.evaluation.metrics import RetrievalMetrics, evaluate_retrieval
from modeling_mllmreid.evaluation.statistics import compare, confidence_intervals, people_error, share_interval
from modeling_mllmreid.utils.errors import UserError


def metrics_of(precision):
    """Metrics of which only the per-query average precision matters; the first match is at rank 1 from 0.5 on."""
    precision = np.asarray(precision, dtype=np.float64)
    first = [np.array([1 if value >= 0.5 else 7]) if value == value else np.empty(0, np.int64) for value in precision]
    valid = int(np.isfinite(precision).sum())
    return RetrievalMetrics(0.0, {1: 0.0, 5: 0.0}, 0.0, len(precision), valid, precision, precision / 2, tuple(first))


def by_identity(rng, identities, spread):
    """Ids and values of 1 to 12 queries for each identity, which share a part of standard deviation `spread`."""
    ids = np.repeat(np.arange(identities), rng.integers(1, 13, identities))
    return ids, spread * rng.normal(size=identities)[ids] + 0.1 * rng.normal(size=len(ids))


def real_metrics(seed, noise, ranks=(1, 3)):
    rng = np.random.default_rng(3)
    persons, gallery = rng.integers(0, 12, 60), rng.integers(1, 11, 120)  # persons 0 and 11 have no match
    centers = rng.normal(size=(12, 8))
    rng = np.random.default_rng(seed)
    q, g = (centers[ids] + noise * rng.normal(size=(len(ids), 8)) for ids in (persons, gallery))
    return evaluate_retrieval(q, g, persons, gallery, ranks=ranks), persons


def test_keys_and_estimates_are_those_of_the_metrics():
    a, ids = real_metrics(0, 1.0)
    b, _ = real_metrics(1, 1.5)
    assert a.num_valid < a.num_queries
    keys = ["mAP", "rank1", "rank3", "mINP"]
    intervals, differences = confidence_intervals(a, ids), compare(a, b, ids)
    assert list(intervals) == list(differences) == keys == list(a.to_dict())[:4]
    for key in keys:
        assert intervals[key].estimate == pytest.approx(a.to_dict()[key], abs=1e-12)
        assert differences[key].difference == pytest.approx(a.to_dict()[key] - b.to_dict()[key], abs=1e-12)
        assert 0 < intervals[key].low < intervals[key].estimate < intervals[key].high < 1
        assert intervals[key].confidence == differences[key].confidence == 0.95
    assert compare(a, real_metrics(1, 1.5, ranks=(20,))[0], ids) == differences  # the ranks are a's
    table = json.loads(json.dumps({key: differences[key].to_dict() for key in keys}))
    assert list(table["mAP"]) == ["difference", "low", "high", "confidence", "p_value"]
    assert json.dumps(intervals["mAP"].to_dict())


@pytest.mark.parametrize("confidence", [0.95, 0.8])
def test_by_hand(confidence):
    """Each metric's values of its queries with a match, person by person, give its error."""
    (a, ids), (b, _) = real_metrics(0, 1.0), real_metrics(1, 1.5)
    names = np.array([f"person {i}" for i in ids])
    intervals = confidence_intervals(a, names, confidence=confidence)
    differences = compare(a, b, names, confidence=confidence)
    valid = np.isfinite(a.average_precision)
    values = [
        {
            **{"mAP": of.average_precision, "mINP": of.inverse_negative_penalty},
            **{f"rank{rank}": of.first_match_rank <= rank for rank in (1, 3)},
        }
        for of in (a, b)
    ]
    people = [np.flatnonzero(valid & (ids == person)) for person in range(1, 11)]
    counts = np.array([len(rows) for rows in people])
    assert len(set(counts)) > 3
    for key in intervals:
        of_a, of_b = (np.asarray(of[key], dtype=float) for of in values)
        error = people_error(np.array([of_a[rows].sum() for rows in people]), counts)
        size = error.effective_size(of_a[valid].mean(), counts, confidence)
        got = intervals[key]
        assert (got.low, got.high) == pytest.approx(share_interval(of_a[valid].mean(), size, confidence))
        sums, mean = np.array([(of_a - of_b)[rows].sum() for rows in people]), (of_a - of_b)[valid].mean()
        error, got = people_error(sums, counts), differences[key]
        assert (got.low, got.high) == pytest.approx(error.interval(mean, confidence))
        assert got.p_value == pytest.approx(error.p_value(mean)) and got.confidence == confidence


def test_one_query_each_is_the_paired_t_test():
    rng = np.random.default_rng(2)
    a, b = rng.random(20), rng.random(20)
    got, expected = compare(metrics_of(a), metrics_of(b), range(20))["mAP"], stats.ttest_rel(a, b)
    assert got.p_value == pytest.approx(expected.pvalue)
    assert (got.low, got.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_p_is_below_its_level_exactly_where_the_interval_leaves_out_0():
    rng = np.random.default_rng(3)
    inside = []
    for shift in np.linspace(0, 0.3, 60):
        ids, values = by_identity(rng, 12, spread=0.2)
        got = compare(metrics_of(values + shift), metrics_of(0 * values), ids)["mAP"]
        inside.append(got.low <= 0 <= got.high)
        assert inside[-1] == (got.p_value >= 0.05)
    assert 10 < sum(inside) < 50


def test_equal_models_and_perfect_ones():
    values = np.array([0.1, 0.2, 0.3, 0.7])
    for other in (values, values + 1e-16, values + [1e-16, 0, 0, -1e-16]):
        same = compare(metrics_of(values), metrics_of(other), [0, 1, 2, 3])["mAP"]
        assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    clear = compare(metrics_of(np.full(40, 0.6)), metrics_of(np.full(40, 0.3)), np.arange(40))
    assert clear["mAP"].p_value == clear["rank1"].p_value == 0 and clear["rank5"].difference == 1
    perfect = confidence_intervals(metrics_of(np.ones(40)), np.arange(40))["rank1"]
    assert perfect.estimate == perfect.high == 1 and 0.85 < perfect.low < 0.95


def test_coverage_needs_the_identities():
    """95% intervals of few people with unequal queries hold the truth; single queries' and a bootstrap's do not."""
    rng = np.random.default_rng(0)
    held = {"identities": [], "queries": [], "shares": []}
    for _ in range(400):
        ids = np.repeat(np.arange(20), 1 + np.floor(20 * rng.random(20) ** 4).astype(int))
        values = 0.2 * rng.normal(size=20)[ids] + 0.1 * rng.normal(size=len(ids))
        for name, groups in (("identities", ids), ("queries", np.arange(len(ids)))):
            got = compare(metrics_of(values), metrics_of(0 * values), groups)["mAP"]
            held[name].append(got.low <= 0 <= got.high)
        hits = (rng.random(20)[ids] < 0.9) * 0.5  # people who are found at once, and one in ten who are not
        got = confidence_intervals(metrics_of(hits), ids)["rank1"]
        held["shares"].append(got.low <= 0.9 <= got.high)
    assert 0.935 < np.mean(held["identities"]) < 0.99 and np.mean(held["shares"]) > 0.91
    assert np.mean(held["queries"]) < 0.75


def test_two_people_are_enough():
    a, b = metrics_of([0.5, 0.7, 0.2]), metrics_of([0.3, 0.2, 0.1])
    assert confidence_intervals(a, [3, 3, 8])["mAP"].estimate == pytest.approx(1.4 / 3)
    got = compare(a, b, [3, 3, 8])["mAP"]
    assert got.low < 0 < got.difference < got.high


def test_order_and_numbers_of_the_people_change_nothing():
    rng = np.random.default_rng(2)
    ids, values = by_identity(rng, 30, 0.2)
    order, values = rng.permutation(len(ids)), values.clip(0, 1)
    moved = confidence_intervals(metrics_of(values[order]), 100 - ids[order])["mAP"]
    assert moved.to_dict() == pytest.approx(confidence_intervals(metrics_of(values), ids)["mAP"].to_dict())


def test_queries_without_a_match_count_for_nothing():
    ids, values = np.array([0, 0, 1, 2, 3]), np.array([0.9, np.nan, 0.2, 0.5, np.nan])
    some = confidence_intervals(metrics_of(values), ids)
    assert some == confidence_intervals(metrics_of(values[[0, 2, 3]]), ids[[0, 2, 3]])
    assert compare(metrics_of(values), metrics_of(values / 2), ids) == compare(
        metrics_of(values[[0, 2, 3]]), metrics_of(values[[0, 2, 3]] / 2), ids[[0, 2, 3]]
    )


def test_users_mistakes_are_named():
    a, b, lone = metrics_of([0.9, 0.2, np.nan]), metrics_of([0.9, np.nan, 0.2]), metrics_of([0.3])
    for message, call in (
        ("query_person_ids: 2 ids for 3 queries: give one per query", lambda: confidence_intervals(a, [0, 1])),
        ("query_person_ids: 1 identity among the queries", lambda: confidence_intervals(a, [4, 4, 5])),
        ("query_person_ids: .* no list of ids", lambda: confidence_intervals(a, [0.5, 1.0, 2.0])),
        ("confidence: 95 is not between 0 and 1: use 0.95", lambda: confidence_intervals(a, [0, 1, 2], confidence=95)),
        ("confidence: 1 is not between 0 and 1", lambda: confidence_intervals(a, [0, 1, 2], confidence=1)),
        ("confidence: 0 is not between 0 and 1", lambda: compare(a, a, [0, 1, 2], confidence=0)),
        ("3 queries in a, 1 in b: compare two models on the same queries", lambda: compare(a, lone, [0, 1, 2])),
        (r"query row 1 has a match in one of a and b alone \(2 such rows\)", lambda: compare(a, b, [0, 1, 2])),
        ("2 ids for 3 queries", lambda: compare(a, a, [0, 1])),
    ):
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
