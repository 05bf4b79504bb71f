"""The fusion of distance and pair score: known coefficients, calibration error, intervals, its file."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest

from modeling_mllmreid.evaluation.calibration import probability
from modeling_mllmreid.evaluation.pair_fusion import PairFusion, calibration_error
from modeling_mllmreid.evaluation.pair_fusion_fit import TooFewPeople, fit_fusion
from modeling_mllmreid.evaluation.threshold import Threshold, load_thresholds, save_thresholds
from modeling_mllmreid.utils.errors import UserError

FUSION = PairFusion(1.0, -8.0, 0.5, 0.6, 0.4, 0.8, 20, 400, 20, 480, 0.2, 0.02)


def simulated(people: int, factors=(2.0, -12.0, 0.7), pairs: int = 40, seed: int = 0):
    """Pairs whose log odds are constant + a * distance + b * score: distances, scores, whether same, people."""
    random = np.random.default_rng(seed)
    distances, scores = random.uniform(0, 0.6, people * pairs), random.normal(-1, 3, people * pairs)
    odds = factors[0] + factors[1] * distances + factors[2] * scores
    same = random.random(len(odds)) < probability(odds)
    return distances, scores, same, np.repeat(np.arange(people), pairs)


def test_known_coefficients_are_found():
    fusion = fit_fusion(*simulated(300), top=40, gallery=480)
    assert (fusion.constant, fusion.distance, fusion.score) == pytest.approx((2.0, -12.0, 0.7), rel=0.06)
    share = 0.7 * 3 / (0.7 * 3 + 12 * 0.6 / 12**0.5)
    assert fusion.share == pytest.approx(share, abs=0.02) and fusion.low < share < fusion.high < fusion.low + 0.1
    assert (fusion.people, fusion.pairs, fusion.top) == (300, 12_000, 40)
    # The score alone promises too much; the fused probability does not.
    assert fusion.ece_before > 0.1 > 0.02 > fusion.ece_after
    distances, scores, same, _ = simulated(300, seed=1)
    assert calibration_error(fusion.pair_probability(distances, scores, 480), same) < 0.02
    assert fit_fusion(*simulated(300), top=40, gallery=480) == fusion


@pytest.mark.parametrize(("factors", "share"), [((0.0, -12.0, 0.0), 0), ((0.0, 0.0, 1.0), 1)])
def test_what_says_nothing_gets_no_weight(factors, share):
    fusion = fit_fusion(*simulated(100, factors), top=40, gallery=480)
    assert fusion.share == pytest.approx(share, abs=0.06) and fusion.low <= share + 0.06 and fusion.high >= share - 0.06
    assert (fusion.low == 0) if share == 0 else (fusion.high == 1)


def test_a_score_that_is_higher_for_other_people_is_not_used():
    fusion = fit_fusion(*simulated(100, (0.0, -12.0, -1.0)), top=40, gallery=480)
    assert fusion.score == 0 > fusion.distance and (fusion.share, fusion.low, fusion.high) == (0, 0, 0)


def test_a_larger_gallery_has_more_people_as_similar():
    """Pairs of other people twice: the fit on one of each pair holds with the size of both."""
    distances, scores, same, persons = simulated(300)
    fusion = fit_fusion(distances, scores, same, persons, top=40, gallery=480)
    rows = np.concatenate([np.arange(len(same)), np.flatnonzero(~same)])
    distances, scores, same = distances[rows], scores[rows], same[rows]
    assert calibration_error(fusion.pair_probability(distances, scores, 960), same) < 0.02
    assert calibration_error(fusion.pair_probability(distances, scores, 480), same) > 0.05
    odds = fusion.log_odds(distances, scores, 480) - fusion.log_odds(distances, scores, 960)
    assert odds == pytest.approx(np.log(2))
    # A few rows that meet conditions are no better evidence.
    assert np.array_equal(fusion.log_odds(distances, scores, 12), fusion.log_odds(distances, scores, 480))


def test_fewer_people_give_a_wider_interval():
    few, many = (fit_fusion(*simulated(people), top=40, gallery=480) for people in (12, 200))
    assert few.high - few.low > 2 * (many.high - many.low)


def test_pairs_of_a_person_are_no_independent_draws():
    """Each person's pairs four times: more pairs, and the same interval."""
    once = simulated(40)
    again = [np.tile(values, 4) for values in once]
    first, second = fit_fusion(*once, top=40, gallery=480), fit_fusion(*again, top=40, gallery=480)
    assert second.pairs == 4 * first.pairs
    assert (second.low, second.high) == pytest.approx((first.low, first.high), abs=1e-4)


def test_separable_pairs_have_finite_odds():
    same = np.tile([True, False], 20)
    fusion = fit_fusion(
        np.where(same, 0.1, 0.5), np.where(same, 5.0, -5.0), same, np.repeat(np.arange(20), 2), top=2, gallery=480
    )
    assert fusion.distance < 0 < fusion.score < 100 and fusion.ece_after < 0.02
    assert (
        fusion.log_odds(np.array([0.1]), np.array([5.0]), 480)
        > 0
        > fusion.log_odds(np.array([0.5]), np.array([-5.0]), 480)
    )


def test_a_constant_score_says_nothing():
    distances, scores, same, persons = simulated(30)
    fusion = fit_fusion(distances, np.zeros_like(scores), same, persons, top=40, gallery=480)
    assert fusion.score == fusion.share == 0 and fusion.distance < 0


def test_the_error_after_the_fit_is_that_of_people_left_out():
    """Scores of noise, few people: on its own pairs a fit is always right in the mean."""
    distances, scores, same, persons = simulated(10, (0.0, 0.0, 0.0), pairs=6)
    random = np.random.default_rng(3)
    same = np.repeat(random.permutation([True, False] * 5), 6)  # all pairs of a person are of one kind
    fusion = fit_fusion(distances, scores, same, persons, top=6, gallery=480)
    on_its_own = calibration_error(fusion.pair_probability(distances, scores, 480), same)
    assert fusion.ece_after > on_its_own


@pytest.mark.parametrize(
    ("people", "change", "reason"),
    [
        (9, lambda same: same, "the queries show 9 people, and 10 are needed"),
        (20, lambda same: same & False, "fewer than 3 people have pairs of one person among their 40 nearest images"),
        (20, lambda same: same | True, "fewer than 3 people have pairs of two people among their 40 nearest images"),
    ],
)
def test_too_little_to_fit(people, change, reason):
    distances, scores, same, persons = simulated(people)
    with pytest.raises(TooFewPeople) as error:
        fit_fusion(distances, scores, change(same), persons, top=40, gallery=480)
    assert str(error.value) == reason


def test_calibration_error_by_hand():
    stated, right = np.array([0.0, 0.01, 0.5, 0.5, 1.0]), np.array([0, 0, 1, 0, 0], dtype=bool)
    # Bins of 1/15: gaps 0.01 in the first, 0 in that of 0.5, 1 in the last.
    assert calibration_error(stated, right) == pytest.approx((0.01 + 0 + 1) / 5)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0


# ---- its file ------------------------------------------------------------------------------------------------------


def threshold(fusion: PairFusion | None) -> Threshold:
    return Threshold(0.5, 0.4, 0.6, 0.1, 0.9, 10, 5, 20, fusion=fusion)


def test_it_is_stored_with_the_threshold(tmp_path):
    stored = {"llm": threshold(FUSION), "vision": threshold(None)}
    save_thresholds(tmp_path, stored)
    assert load_thresholds(str(tmp_path)) == stored
    # A file of an older version.
    older = {"llm": {name: value for name, value in asdict(threshold(None)).items() if name != "fusion"}}
    (tmp_path / "threshold.json").write_text(json.dumps(older))
    assert load_thresholds(str(tmp_path)) == {"llm": threshold(None)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance": 1.0}, "fusion.distance: input should be less than or equal to 0"),
        ({"score": -1.0}, "fusion.score: input should be greater than or equal to 0"),
        ({"share": 2.0}, "fusion.share"),
        ({"low": 0.9}, "low 0.9 is above high 0.8"),
        ({"ece_after": -0.1}, "fusion.ece_after"),
        ({"top": 0}, "fusion.top"),
        ({"gallery": 0}, "fusion.gallery"),
        # Numbers whose log odds are infinite, or equal for all pairs.
        ({"constant": 1e31}, "fusion.constant: input should be less than or equal to"),
        ({"distance": -1e31}, "fusion.distance: input should be greater than or equal to"),
        ({"score": 1e31}, "fusion.score: input should be less than or equal to"),
        ({"gallery": 10**400}, "fusion.gallery: input should be less than or equal to"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, change, message):
    save_thresholds(tmp_path, {"llm": threshold(replace(FUSION, **change))})
    with pytest.raises(UserError, match=message):
        load_thresholds(str(tmp_path))
