"""Intervals that hold what they say over people, and p-values against full enumeration."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from modeling_mllmreid.errors import UserError
from modeling_mllmreid.evaluation.metrics import RetrievalMetrics
from modeling_mllmreid.evaluation.statistics import _sign_flip_p_values, compare, confidence_intervals


def result(precision, first=None):
    """A result with these average precisions; the rest follows where it matters."""
    precision = np.asarray(precision, dtype=np.float64)
    first = np.where(precision > 0.5, 1, 7) if first is None else np.asarray(first)
    ranks = tuple(np.array([f]) if p == p else np.array([], dtype=int) for f, p in zip(first, precision, strict=True))
    valid = ~np.isnan(precision)
    cmc = {rank: float((first[valid] <= rank).mean()) for rank in (1, 10)}
    mean = float(precision[valid].mean())
    return RetrievalMetrics(mean, cmc, mean, len(precision), int(valid.sum()), precision, precision, ranks)


def people(rng, persons, queries, spread):
    """Average precisions whose mean differs from person to person."""
    ids = np.repeat(np.arange(persons), queries)
    return np.clip(0.5 + spread * rng.normal(size=persons)[ids] + 0.05 * rng.normal(size=len(ids)), 0, 1), ids


def test_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    precision, ids = people(rng, 9, 4, 0.2)
    precision[5] = np.nan
    got = confidence_intervals(result(precision), ids, resamples=4000, seed=3)
    assert list(got) == ["mAP", "rank1", "rank10", "mINP"]
    means = []
    for _ in range(4000):
        rows = np.concatenate([np.flatnonzero(ids == person) for person in rng.integers(0, 9, 9)])
        means.append(np.nanmean(precision[rows]))
    low, high = np.quantile(means, [0.025, 0.975])
    assert got["mAP"].value == pytest.approx(np.nanmean(precision))
    assert (got["mAP"].low, got["mAP"].high) == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))
    assert got["rank10"] == type(got["mAP"])(1.0, 1.0, 1.0)
    assert got["mAP"].to_dict().keys() == {"value", "low", "high"}
    again = confidence_intervals(result(precision), ids.astype(str), resamples=4000, seed=3)
    assert again == got != confidence_intervals(result(precision), ids, resamples=4000, seed=4)


def test_the_interval_covers_where_resampling_single_queries_does_not():
    """200 experiments on 40 new people with 10 queries each; the true mean is 0.5."""
    rng = np.random.default_rng(1)
    by_person = by_query = 0
    for _ in range(200):
        precision, ids = people(rng, 40, 10, 0.15)
        whole = confidence_intervals(result(precision), ids, resamples=300)["mAP"]
        single = confidence_intervals(result(precision), np.arange(400), resamples=300)["mAP"]
        by_person += whole.low <= 0.5 <= whole.high
        by_query += single.low <= 0.5 <= single.high
    assert 178 <= by_person <= 199
    assert by_query < 140


def test_p_values_by_enumeration():
    sums = np.array([[0.3, 0.0], [0.1, 0.2], [0.2, -0.2], [-0.05, 0.1], [0.4, 0.0], [0.15, 0.3]])
    signs = np.array(list(itertools.product((-1, 1), repeat=6)))
    exact = (np.abs(signs @ sums) >= np.abs(sums.sum(0)) - 1e-12).mean(0)
    np.testing.assert_allclose(_sign_flip_p_values(sums, 40_000, 0), exact, atol=0.01)


def test_p_values_are_uniform_without_a_difference_and_small_with_one():
    rng = np.random.default_rng(2)
    p_values = []
    for _ in range(200):
        first, ids = people(rng, 25, 3, 0.1)
        second = first + 0.1 * rng.normal(size=25)[ids] + 0.02 * rng.normal(size=75)
        p_values.append(compare(result(first), result(second), ids, resamples=200)["mAP"].p_value)
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.1
    assert 0.4 < np.mean(p_values) < 0.6
    better = compare(result(first), result(first + 0.05 + 0.02 * rng.normal(size=75)), ids, resamples=2000)["mAP"]
    assert better.p_value == 1 / 2001 and 0.03 < better.low < better.difference < better.high < 0.07
    assert compare(result(first), result(first), ids)["rank1"].to_dict() == {
        **dict.fromkeys(["difference", "low", "high"], 0.0),
        "p_value": 1.0,
    }


def test_mistakes():
    some = result([0.2, 0.9, 0.4])
    with pytest.raises(UserError, match="2 ids for 3 queries"):
        confidence_intervals(some, [1, 2])
    with pytest.raises(UserError, match="1 person with a match: an interval over people needs"):
        confidence_intervals(some, [1, 1, 1])
    with pytest.raises(UserError, match="confidence: 95 is no share"):
        confidence_intervals(some, [1, 2, 3], confidence=95)
    with pytest.raises(UserError, match="resamples: 0"):
        confidence_intervals(some, [1, 2, 3], resamples=0)
    with pytest.raises(UserError, match=r"of other queries \(3 and 2 with a match\)"):
        compare(some, result([0.2, np.nan, 0.4]), [1, 2, 3])
    with pytest.raises(UserError, match="other ranks"):
        compare(some, replace(some, cmc={1: 0.5}), [1, 2, 3])
