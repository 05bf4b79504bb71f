"""Intervals and paired comparisons by identity: naive loops, exact enumeration, coverage where queries depend."""

import itertools
import json

import numpy as np
import pytest

from modeling_mllmreid.errors import UserError
from modeling_mllmreid.evaluation import statistics
from modeling_mllmreid.evaluation.metrics import RetrievalMetrics, evaluate_retrieval
from modeling_mllmreid.evaluation.statistics import compare, confidence_intervals


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
    intervals, differences = confidence_intervals(a, ids, resamples=200), compare(a, b, ids, resamples=200)
    assert list(intervals) == list(differences) == keys == list(a.to_dict())[:4]
    for key in keys:
        assert intervals[key].estimate == pytest.approx(a.to_dict()[key], abs=1e-12)
        assert differences[key].difference == pytest.approx(a.to_dict()[key] - b.to_dict()[key], abs=1e-12)
        assert intervals[key].low < intervals[key].estimate < intervals[key].high
    assert compare(a, real_metrics(1, 1.5, ranks=(20,))[0], ids, resamples=200) == differences  # the ranks are a's
    table = json.loads(json.dumps({key: differences[key].to_dict() for key in keys}))
    assert list(table["mAP"]) == ["difference", "low", "high", "confidence", "p_value"]
    assert json.dumps(intervals["mAP"].to_dict())


def test_equals_naive_loops(monkeypatch):
    """The same draws, walked identity by identity; chunks of seven draws change nothing."""
    (a, ids), (b, _) = real_metrics(0, 1.0), real_metrics(1, 1.5)
    names = np.array([f"person {i}" for i in ids])
    monkeypatch.setattr(statistics, "CHUNK", 70)
    interval = confidence_intervals(a, names, confidence=0.9, resamples=300, seed=5)["rank3"]
    paired = compare(a, b, names, confidence=0.9, resamples=300, seed=5)["mAP"]
    rng = np.random.default_rng(5)
    hit, difference = a.first_match_rank <= 3, a.average_precision - b.average_precision
    persons = np.unique(names[np.isfinite(difference)])
    shares, means = [], []
    for _ in range(300):
        queries = np.concatenate([np.flatnonzero(names == persons[i]) for i in rng.integers(10, size=10)])
        shares.append(hit[queries].mean())
        means.append(difference[queries].mean())
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(shares, [0.05, 0.95]), atol=1e-12)
    np.testing.assert_allclose([paired.low, paired.high], np.quantile(means, [0.05, 0.95]), atol=1e-12)


def test_tiny_case_by_enumeration():
    """Three identities: 27 equally likely draws with replacement, 8 equally likely signs."""
    ids, values = np.array([0, 0, 1, 2, 2, 2]), np.array([0.9, 0.6, 0.2, 0.5, 0.4, 0.1])
    draws = [
        np.concatenate([values[ids == i] for i in drawn]).mean() for drawn in itertools.product(range(3), repeat=3)
    ]
    for confidence in (0.5, 0.8):
        ends = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], method="inverted_cdf")
        got = confidence_intervals(metrics_of(values), ids, confidence=confidence, resamples=20_000)["mAP"]
        np.testing.assert_allclose([got.low, got.high], ends, atol=1e-12)
    other = np.array([0.6, 0.8, 0.1, 0.3, 0.2, 0.2])
    sums = np.array([(values - other)[ids == i].sum() for i in range(3)])
    flipped = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=3)]
    share = np.mean(np.array(flipped) >= abs(sums.sum()) - 1e-12)
    assert 0.2 < share < 0.9
    got = compare(metrics_of(values), metrics_of(other), ids, resamples=20_000)["mAP"]
    assert got.p_value == pytest.approx(share, abs=0.015)


def test_p_value_counts_the_observed_flip_and_ties():
    values = np.array([0.1, 0.2, 0.3, 0.7])
    same = compare(metrics_of(values), metrics_of(values), [0, 1, 2, 3], resamples=99)["mAP"]
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    # Every sign pattern of two equal differences is 0 or as far: p is the share of the latter, one half.
    even = compare(metrics_of([0.4, 0.7]), metrics_of([0.3, 0.6]), [0, 1], resamples=20_000)["mAP"]
    assert even.p_value == pytest.approx(0.5, abs=0.015)
    clear = compare(metrics_of(np.full(40, 0.6)), metrics_of(np.full(40, 0.3)), np.arange(40), resamples=999)
    assert clear["mAP"].p_value == clear["rank1"].p_value == 1 / 1000
    assert clear["rank5"].difference == 1


def test_coverage_needs_the_identities():
    """95% intervals of correlated queries hold the truth about as often as they say; single queries' are too narrow."""
    rng = np.random.default_rng(0)
    held = {"identities": 0, "queries": 0}
    for trial in range(300):
        ids, values = by_identity(rng, 50, spread=0.2)
        for name, groups in (("identities", ids), ("queries", np.arange(len(ids)))):
            got = confidence_intervals(metrics_of(values), groups, resamples=400, seed=trial)["mAP"]
            held[name] += got.low <= 0 <= got.high
    assert 0.90 < held["identities"] / 300 < 0.98
    assert held["queries"] / 300 < 0.75


def test_p_values_under_the_null_and_under_a_difference():
    rng = np.random.default_rng(1)
    p_values = {"identities": [], "queries": [], "differ": []}
    for trial in range(300):
        ids, values = by_identity(rng, 40, spread=0.2)
        base = rng.random(len(ids))
        for name, groups, gain in (("identities", ids, 0), ("queries", np.arange(len(ids)), 0), ("differ", ids, 0.2)):
            a, b = metrics_of(base + values + gain), metrics_of(base)
            p_values[name].append(compare(a, b, groups, resamples=200, seed=trial)["mAP"].p_value)
    shares = {name: [np.mean(np.array(values) <= p) for p in (0.05, 0.5)] for name, values in p_values.items()}
    assert 0.02 < shares["identities"][0] < 0.09 and 0.42 < shares["identities"][1] < 0.58
    assert shares["queries"][0] > 0.2
    assert shares["differ"][0] > 0.95


def test_seeds():
    rng = np.random.default_rng(2)
    ids, values = by_identity(rng, 30, 0.2)
    a, b = metrics_of(values), metrics_of(values + 0.1 * rng.normal(size=len(ids)))
    for run in (lambda seed: confidence_intervals(a, ids, seed=seed), lambda seed: compare(a, b, ids, seed=seed)):
        assert run(4) == run(4) != run(5)
    order = rng.permutation(len(ids))
    moved = confidence_intervals(metrics_of(values[order]), ids[order])["mAP"]
    assert moved.low == pytest.approx(confidence_intervals(a, ids)["mAP"].low, abs=1e-12)


def test_queries_without_a_match_count_for_nothing():
    ids, values = np.array([0, 0, 1, 2, 3]), np.array([0.9, np.nan, 0.2, 0.5, np.nan])
    some = confidence_intervals(metrics_of(values), ids, resamples=500)
    assert some == confidence_intervals(metrics_of(values[[0, 2, 3]]), ids[[0, 2, 3]], resamples=500)


def test_users_mistakes_are_named():
    a, b, lone = metrics_of([0.9, 0.2, np.nan]), metrics_of([0.9, np.nan, 0.2]), metrics_of([0.3])
    for message, call in (
        ("query_person_ids: 2 ids for 3 queries: give one per query", lambda: confidence_intervals(a, [0, 1])),
        ("query_person_ids: 1 identity among the queries", lambda: confidence_intervals(a, [4, 4, 5])),
        ("query_person_ids: .* no list of ids", lambda: confidence_intervals(a, [0.5, 1.0, 2.0])),
        ("confidence: 95 is not between 0 and 1: use 0.95", lambda: confidence_intervals(a, [0, 1, 2], confidence=95)),
        ("resamples: 0 is no number", lambda: confidence_intervals(a, [0, 1, 2], resamples=0)),
        ("3 queries in a, 1 in b: compare two models on the same queries", lambda: compare(a, lone, [0, 1, 2])),
        (r"query row 1 has a match in one of a and b alone \(2 such rows\)", lambda: compare(a, b, [0, 1, 2])),
        ("2 ids for 3 queries", lambda: compare(a, a, [0, 1])),
    ):
        with pytest.raises(UserError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
