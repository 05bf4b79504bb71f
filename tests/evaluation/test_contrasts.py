"""Intervals and tests over seeds and people: known cases, brute force, and the error rates that they promise."""

import numpy as np
import pytest
from scipy import stats

from modeling_mllmreid.errors import UserError
from modeling_mllmreid.evaluation.contrasts import contrast, holm, interval_over_seeds

PERSONS = np.repeat(np.arange(20), 3)


def crossed(rng, seeds, *, effect=0.0, of_seed=0.0, of_person=0.0, noise=0.0):
    """Differences (seeds, queries): an effect of each seed, of each person, and of each value."""
    people = rng.normal(0, of_person, 20)[PERSONS] if of_person else np.zeros(len(PERSONS))
    return effect + rng.normal(0, of_seed, (seeds, 1)) + people + rng.normal(0, noise, (seeds, len(PERSONS)))


def test_the_estimate_is_the_mean_over_seeds_and_valid_queries():
    values = np.random.default_rng(0).random((4, 60))
    values[:, 7] = np.nan
    interval = interval_over_seeds(values, PERSONS)
    assert interval.estimate == pytest.approx(np.nanmean(values)) and interval.low < interval.estimate < interval.high


def test_the_interval_is_the_bootstrap_over_seeds_and_people():
    rng = np.random.default_rng(1)
    values = crossed(rng, 5, of_seed=0.3, of_person=0.4, noise=0.1)
    interval = interval_over_seeds(values, PERSONS, resamples=20_000)
    draws = []
    for _ in range(4000):
        people = rng.integers(20, size=20)
        columns = np.concatenate([np.flatnonzero(person == PERSONS) for person in people])
        draws.append(values[rng.integers(5, size=5)][:, columns].mean())
    low, high = np.quantile(draws, [0.025, 0.975])
    assert interval.low == pytest.approx(low, abs=0.05) and interval.high == pytest.approx(high, abs=0.05)


def test_with_seeds_alone_the_p_value_is_that_of_the_paired_t_test():
    a = np.random.default_rng(2).normal(0, 1, (6, 1)) + np.zeros((6, 60))
    found = contrast(a + 0.5, np.zeros_like(a), PERSONS)
    assert found.p_value == pytest.approx(stats.ttest_1samp(a[:, 0] + 0.5, 0).pvalue)
    assert found.difference == pytest.approx(a.mean() + 0.5) and found.seed_sd == pytest.approx(a[:, 0].std(ddof=1))


def test_with_people_alone_the_p_value_is_that_of_the_t_test_over_people():
    people = np.random.default_rng(3).normal(0.2, 1, 20)
    found = contrast(np.tile(people[PERSONS], (4, 1)), np.zeros((4, 60)), PERSONS)
    assert found.p_value == pytest.approx(stats.ttest_1samp(people, 0).pvalue)


def test_false_alarms_and_the_promised_power():
    rng = np.random.default_rng(4)
    spread = {"of_seed": 0.2, "of_person": 0.3, "noise": 0.3}
    null = [contrast(crossed(rng, 5, **spread), np.zeros((5, 60)), PERSONS, resamples=10) for _ in range(600)]
    assert 0.01 < np.mean([found.p_value < 0.05 for found in null]) < 0.075
    effect = float(np.median([found.detectable for found in null]))
    shifted = [
        contrast(crossed(rng, 5, effect=effect, **spread), np.zeros((5, 60)), PERSONS, resamples=10) for _ in range(400)
    ]
    assert 0.7 < np.mean([found.p_value < 0.05 for found in shifted]) < 0.95


def test_one_seed_has_an_interval_over_people_and_no_test():
    values = np.random.default_rng(5).random((1, 60))
    found = contrast(values, np.zeros((1, 60)), PERSONS)
    assert np.isnan([found.p_value, found.seed_sd, found.detectable]).all() and found.low < found.high
    assert found.to_dict()["p_value"] is None


def test_equal_models_and_a_constant_difference():
    values = np.random.default_rng(6).random((3, 60))
    assert contrast(values, values, PERSONS).p_value == 1
    exact = np.full((3, 60), 0.25)
    assert contrast(exact, np.zeros((3, 60)), PERSONS).p_value == 0


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    with_nan = holm([np.nan, 0.02])
    assert np.isnan(with_nan[0]) and with_nan[1] == 0.02


def test_bad_input():
    values = np.zeros((2, 60))
    with pytest.raises(UserError, match=r"a has the shape \(2, 60\), b \(3, 60\): give the same seeds and queries"):
        contrast(values, np.zeros((3, 60)), PERSONS)
    with pytest.raises(UserError, match="give two or more, an interval comes from how they differ"):
        interval_over_seeds(values, np.zeros(60, dtype=int))
    values[0, 3] = np.nan
    with pytest.raises(UserError, match="a query has a match for some seeds alone"):
        interval_over_seeds(values, PERSONS)
    with pytest.raises(UserError, match=r"values have the shape \(60,\) for 60 ids"):
        interval_over_seeds(values[0], PERSONS)
