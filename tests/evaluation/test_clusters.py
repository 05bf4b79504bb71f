"""Errors of means over queries by person: matrices written out, and scipy's tests."""

import numpy as np
import pytest
from scipy import stats

from modeling_mllmreid.evaluation.statistics import Error, combined, holds_share, people_error, share_interval


def test_with_equal_counts_it_is_the_t_test_over_people():
    people = np.random.default_rng(0).normal(0.3, 1, 12)
    error, expected = people_error(5 * people, np.full(12, 5)), stats.ttest_1samp(people, 0)
    assert error.freedom == pytest.approx(11) and error.variance == pytest.approx(people.var(ddof=1) / 12)
    assert error.p_value(people.mean()) == pytest.approx(expected.pvalue)
    for confidence in (0.95, 0.8):
        interval = error.interval(people.mean(), confidence)
        assert interval == pytest.approx(tuple(expected.confidence_interval(confidence)))


def test_unequal_counts_against_the_matrices_written_out():
    rng, counts = np.random.default_rng(1), np.array([1, 2, 20, 3, 1, 7])
    people = rng.normal(size=6)
    weights = counts / counts.sum()
    residual_maker = np.eye(6) - np.outer(np.ones(6), weights)
    covariance = residual_maker @ residual_maker.T  # of the residuals, where people differ by a variance of 1
    scaled = weights / np.sqrt(np.diag(covariance))
    of_variance = scaled[:, None] * covariance * scaled
    error = people_error(people * counts, counts)
    assert error.variance == pytest.approx(((scaled * (residual_maker @ people)) ** 2).sum())
    assert error.freedom == pytest.approx(np.trace(of_variance) ** 2 / (of_variance**2).sum())
    assert 1 < error.freedom < 3  # the person of 20 decides nearly alone
    draws = [people_error(rng.normal(size=6) * counts, counts).variance for _ in range(4000)]
    assert np.mean(draws) == pytest.approx((weights**2).sum(), rel=0.06)  # no bias
    two = people_error(np.array([1.0, 20.0]), np.array([1, 50]))
    assert two.freedom == pytest.approx(1)


def test_what_is_left_by_rounding_is_no_spread():
    counts = np.array([1, 3, 7])
    error = people_error(0.1 * counts + [0, 1e-17, -1e-17], counts)
    assert error.variance == 0 and error.p_value(0.1) == 0 and error.p_value(0.0) == 1
    assert error.interval(0.1) == (0.1, 0.1)
    assert people_error((0.1 + np.array([0, 0, 3e-12])) * counts, counts).variance > 0


def test_parts_are_combined():
    error = combined([Error(0.04, 2), Error(0.01, 19)])
    assert error.variance == pytest.approx(0.05)
    assert error.freedom == pytest.approx(0.05 / (0.04 / 2 + 0.01 / 19))
    assert combined([Error(0.0, 2), Error(0.3, 5)]) == Error(0.3, 5)
    assert combined([Error(0.0, 2), Error(0.0, 5)]).variance == 0


def test_effective_size_by_hand():
    counts = np.array([1, 3, 6])
    shrunk = lambda level: (stats.norm.ppf(level) / stats.t.ppf(level, 4)) ** 2  # noqa: E731
    assert Error(0.04, 4).effective_size(0.3, counts) == pytest.approx(0.21 / 0.04 * shrunk(0.975))
    assert Error(0.04, 4).effective_size(0.3, counts, 0.8) == pytest.approx(0.21 / 0.04 * shrunk(0.9))
    assert Error(0.001, 4).effective_size(0.3, counts) == pytest.approx(10 * shrunk(0.975))  # no more than queries
    assert Error(0.0, 4).effective_size(1.0, counts) == pytest.approx(100 / 46)  # people, unequal


def test_interval_of_a_share_is_that_of_clopper_and_pearson():
    for hits, size, confidence in ((0, 9, 0.95), (3, 9, 0.95), (9, 9, 0.8), (47, 200, 0.99)):
        expected = stats.binomtest(hits, size).proportion_ci(confidence, method="exact")
        low, high = share_interval(hits / size, size, confidence)
        assert (low, high) == pytest.approx((expected.low, expected.high))
        edges = [end + step for end in (low, high) for step in (-1e-6, 1e-6) if 0 < end < 1]
        for truth in (0.01, 0.2, 0.5, 0.9, 0.99, *edges):
            assert holds_share(truth, hits / size, size, confidence) == (low <= truth <= high)
