"""Intervals and tests over seeds and people: known cases, one by hand, and their error rates."""

import json

import numpy as np
import pytest
from scipy import stats

from modeling_mllmreid.evaluation.statistics import share_interval
from modeling_mllmreid.research.ablation.contrasts import CLAIM, contrast, holm, interval_over_seeds
from modeling_mllmreid.utils.errors import UserError

PERSONS = np.repeat(np.arange(20), 3)


def crossed(rng, seeds, persons=PERSONS, *, effect=0.0, seed_sd=0.0, person_sd=0.0, noise=0.0):
    """Differences (seeds, queries): an effect of each seed, of each person, and of each value."""
    people = rng.normal(0, person_sd, persons.max() + 1)[persons]
    return effect + rng.normal(0, seed_sd, (seeds, 1)) + people + rng.normal(0, noise, (seeds, len(persons)))


def zero_against(values, persons=PERSONS):
    return contrast(values, np.zeros_like(values), persons)


def test_unequal_people_and_queries_without_a_match_by_hand():
    """Two seeds, three people of 1, 2 and 4 queries with a match; the ids are neither sorted nor from 0."""
    persons = np.array([9, 4, 4, 7, 7, 7, 7, 4])
    a = np.array([[0.9, 0.5, 0.3, 0.2, 0.6, 0.4, 0.8, np.nan], [0.7, 0.4, 0.4, 0.3, 0.9, 0.1, 0.6, np.nan]])
    b = np.array([[0.4, 0.5, 0.1, 0.3, 0.2, 0.3, 0.4, np.nan], [0.6, 0.1, 0.3, 0.4, 0.6, 0.2, 0.2, np.nan]])
    d = (a - b)[:, :7]
    seed_means, mean = d.mean(1), d.mean()
    person_means = np.array([d[:, :1].mean(), d[:, 1:3].mean(), d[:, 3:].mean()])
    weights = np.array([1, 2, 4]) / 7
    maker = np.eye(3) - weights
    covariance = maker @ maker.T
    scaled = weights / np.sqrt(np.diag(covariance))
    matrix = scaled[:, None] * covariance * scaled
    variances = seed_means.var(ddof=1) / 2, ((scaled * (person_means - mean)) ** 2).sum()
    freedom = sum(variances) / (variances[0] / 1 + variances[1] / (np.trace(matrix) ** 2 / (matrix**2).sum()))
    expected = stats.t(freedom, mean, sum(variances) ** 0.5)
    found = contrast(a, b, persons)
    assert found.difference == pytest.approx(mean)
    assert (found.low, found.high) == pytest.approx(expected.interval(0.95))
    assert found.p_value == pytest.approx(2 * expected.cdf(0)) and found.seed_sd == pytest.approx(
        seed_means.std(ddof=1)
    )
    quantiles = stats.t.ppf([0.975, 0.8], freedom)
    assert found.detectable == pytest.approx(quantiles.sum() * sum(variances) ** 0.5)
    # Three people differ too much for any number of seeds.
    assert np.isnan(found.seeds_for_claim)
    assert json.loads(json.dumps(found.to_dict())) == pytest.approx({**vars(found), "seeds_for_claim": None})
    # The same error gives the interval of a variant: outside 0 to 1 Student's, else that of a share.
    outside = interval_over_seeds(a - b, persons)
    assert (outside.estimate, outside.low, outside.high) == (found.difference, found.low, found.high)
    above = interval_over_seeds(a - b + 0.7, persons)
    assert (above.low, above.high) == pytest.approx((found.low + 0.7, found.high + 0.7))
    share = interval_over_seeds(d**2, persons[:7])
    assert share.estimate == pytest.approx((d**2).mean()) and share.confidence == outside.confidence == 0.95
    assert 0 < share.low < share.estimate < share.high < 1


def test_the_interval_of_shares_has_the_effective_size():
    hits = (np.random.default_rng(0).random((3, 20)) < np.linspace(0.5, 1, 20)).astype(float)[:, PERSONS]
    found, share = zero_against(hits), interval_over_seeds(hits, PERSONS)
    # Student's half width is t times the standard error: what z and the effective size give.
    variance = ((found.high - found.low) / 2 / stats.norm.ppf(0.975)) ** 2
    size = share.estimate * (1 - share.estimate) / variance
    assert size < 40 and (share.low, share.high) == pytest.approx(share_interval(share.estimate, size))
    all_right = interval_over_seeds(np.ones((3, 60)), PERSONS)
    assert all_right.high == all_right.estimate == 1 and all_right.low == pytest.approx(0.025 ** (1 / 20))
    assert interval_over_seeds(np.zeros((3, 60)), PERSONS).low == 0


def test_with_seeds_alone_the_p_value_is_that_of_the_paired_t_test():
    a = np.random.default_rng(2).normal(0, 1, (6, 1)) + np.zeros((6, 60))
    found, expected = contrast(a + 0.5, np.zeros_like(a), PERSONS), stats.ttest_1samp(a[:, 0] + 0.5, 0)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    assert found.difference == pytest.approx(a.mean() + 0.5) and found.seed_sd == pytest.approx(a[:, 0].std(ddof=1))


def test_with_people_alone_the_p_value_is_that_of_the_t_test_over_people():
    people = np.random.default_rng(3).normal(0.2, 1, 20)
    found, expected = zero_against(np.tile(people[PERSONS], (4, 1))), stats.ttest_1samp(people, 0)
    assert found.p_value == pytest.approx(expected.pvalue) and found.seed_sd == 0
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    one = zero_against(people[PERSONS][None])
    assert (one.low, one.high) == pytest.approx((found.low, found.high))


@pytest.mark.parametrize(
    "seeds, spread",
    [(3, {"seed_sd": 1.0, "person_sd": 0.8}), (4, {"seed_sd": 0.1, "person_sd": 1.0}), (1, {"person_sd": 1.0})],
)
def test_coverage_with_few_seeds_and_unequal_people(seeds, spread):
    """95 % intervals cover the true value; a bootstrap covers it in 83 to 92 % of these cases."""
    rng, held = np.random.default_rng(0), []
    for _ in range(1000):
        persons = np.repeat(np.arange(20), 1 + np.floor(20 * rng.random(20) ** 4).astype(int))
        found = zero_against(crossed(rng, seeds, persons, **spread), persons)
        held.append(found.low <= 0 <= found.high)
        assert seeds == 1 or held[-1] == (found.p_value >= 0.05)
    assert 0.93 < np.mean(held) < 0.99


def test_false_positives_and_power():
    rng = np.random.default_rng(4)
    spread = {"seed_sd": 0.2, "person_sd": 0.3, "noise": 0.3}
    null = [zero_against(crossed(rng, 5, **spread)) for _ in range(600)]
    assert 0.01 < np.mean([found.p_value < 0.05 for found in null]) < 0.075
    effect = float(np.median([found.detectable for found in null]))
    shifted = [zero_against(crossed(rng, 5, effect=effect, **spread)) for _ in range(400)]
    assert 0.7 < np.mean([found.p_value < 0.05 for found in shifted]) < 0.95


def test_the_seeds_that_would_show_the_claim_do_so():
    """With as many seeds, 3.1 points are shown with the promised probability. With few people, no number shows them."""
    rng = np.random.default_rng(7)
    spread = {"seed_sd": 0.06, "person_sd": 0.01, "noise": 0.1}
    few = [zero_against(crossed(rng, 5, **spread)) for _ in range(200)]
    seeds = int(np.median([found.seeds_for_claim for found in few]))
    assert 10 < seeds < 100
    more = [zero_against(crossed(rng, seeds, effect=CLAIM, **spread)) for _ in range(400)]
    assert 0.7 < np.mean([found.p_value < 0.05 for found in more]) < 0.95
    for found, number in [*((found, 5) for found in few), *((found, seeds) for found in more)]:
        assert (found.detectable <= CLAIM) == (found.seeds_for_claim <= number)
    different_people = zero_against(crossed(rng, 5, person_sd=0.1))
    assert np.isnan(different_people.seeds_for_claim)
    assert zero_against(np.full((3, 60), 0.1)).seeds_for_claim == 2


def test_one_seed_has_an_interval_over_people_and_no_test():
    values = np.random.default_rng(5).random((1, 60))
    found = zero_against(values)
    assert (
        np.isnan([found.p_value, found.seed_sd, found.detectable, found.seeds_for_claim]).all()
        and found.low < found.high
    )
    assert found.to_dict()["p_value"] is None


def test_equal_models_and_a_constant_difference():
    values = np.random.default_rng(6).random((3, 60))
    for same in (values, values + 1e-17 * np.arange(60), values + np.full((3, 60), 1e-15)):
        found = contrast(values, same, PERSONS)
        assert (found.difference, found.low, found.high, found.p_value, found.detectable) == (0, 0, 0, 1, 0)
    exact = zero_against(np.full((3, 60), 0.1))
    assert exact.p_value == exact.seed_sd == exact.detectable == 0 and exact.low == exact.high == exact.difference


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.02, 0.01, 0.5]) == pytest.approx([0.04, 0.03, 0.5])
    with_nan = holm([np.nan, 0.02, 0.01])
    assert np.isnan(with_nan[0]) and with_nan[1:] == [0.02, 0.02]


def test_bad_input():
    values = np.zeros((2, 60))
    with pytest.raises(UserError, match=r"a has the shape \(2, 60\), b \(3, 60\): give the same seeds and queries"):
        contrast(values, np.zeros((3, 60)), PERSONS)
    with pytest.raises(UserError, match="1 person with a match: give two or more, an interval comes from how they"):
        interval_over_seeds(values, np.zeros(60, dtype=int))
    with pytest.raises(UserError, match=r"values have the shape \(2, 60\) for 59 ids: give \(seeds, queries\)"):
        interval_over_seeds(values, PERSONS[1:])
    values[0, 3] = np.nan
    with pytest.raises(UserError, match="a query has a match for some seeds only"):
        interval_over_seeds(values, PERSONS)
    with pytest.raises(UserError, match=r"values have the shape \(60,\) for 60 ids"):
        interval_over_seeds(values[0], PERSONS)
    assert interval_over_seeds(np.zeros((2, 60)), np.minimum(PERSONS, 1)).estimate == 0


def test_a_query_that_only_one_side_has_is_refused():
    a, b = np.full((2, 3), 0.5), np.full((2, 3), 0.25)
    b[:, 1] = np.nan
    with pytest.raises(UserError, match="a query has a match in only one of a and b: evaluate both with the same"):
        contrast(a, b, [1, 2, 3])
