from dataclasses import replace

import numpy as np
import pytest
from unknown_people import CALIBRATION, features_of

from modeling_mllmreid.evaluation.calibration import probability
from modeling_mllmreid.evaluation.calibration_fit import fit_calibration
from modeling_mllmreid.evaluation.grouping import grouping_metrics
from modeling_mllmreid.evaluation.threshold import Threshold, load_thresholds, save_thresholds
from modeling_mllmreid.model.shipped_models import PRETRAINED
from modeling_mllmreid.retrieval.merging import Groups, merge_groups
from modeling_mllmreid.retrieval.neighbourhoods import find_candidates
from modeling_mllmreid.utils.errors import UserError

PERSONS = np.repeat(np.arange(40), 8)


@pytest.fixture(scope="module")
def fitted():
    return fit_calibration(features_of(PERSONS, noise=1.1, seed=1), PERSONS)


def test_the_threshold_holds_for_other_people(fitted):
    features = features_of(PERSONS, noise=1.1, seed=2)
    groups = Groups(features, find_candidates(features), np.arange(len(features)))
    merge_groups(groups, fitted.merge_score, fitted.least, lambda *pair: True)
    metrics = grouping_metrics(groups.root, PERSONS)
    assert metrics.precision >= 0.95 and metrics.recall > 0.3
    assert fitted.precision >= 0.95 and (fitted.people, fitted.images) == (40, 320)


def test_stated_probabilities_are_those_that_occur(fitted):
    """Two crops of other people, with the prior of their gallery: mean probability and share that is right, by bins."""
    points = features_of(PERSONS, noise=1.1, seed=3).astype(np.float64)
    first, second = np.triu_indices(len(points), 1)
    same = PERSONS[first] == PERSONS[second]
    stated = fitted.pair_probability(1 - (points[first] * points[second]).sum(1), prior=float(same.mean()))
    for low, high in ((0, 0.02), (0.02, 0.3), (0.3, 0.7), (0.7, 1.01)):
        bin_ = (low <= stated) & (stated < high)
        assert bin_.sum() > 30 and stated[bin_].mean() == pytest.approx(same[bin_].mean(), abs=0.12)
    assert (np.diff(fitted.pair_probability(np.linspace(0, 2, 200))) <= 0).all()
    assert fitted.merge[1] < 0 <= fitted.merge[2]


def test_it_does_not_depend_on_the_names_of_people():
    persons = np.repeat(np.arange(12), 4)
    features = features_of(persons)
    assert fit_calibration(features, [f"p{person:02d}" for person in persons]) == fit_calibration(features, persons)


def test_the_model_of_the_package_has_one():
    """Its people are those of a world of their own, see `hub/pack.py`; the threshold is that of its val people."""
    stored = load_thresholds(str(PRETRAINED / "pedestrians-small"))["vision"]
    assert (stored.people, stored.distance) == (100, 0.5814409852027893)
    assert stored.calibration.images == 2000 and stored.calibration.precision >= 0.95


def test_too_little_to_calibrate():
    nine = np.repeat(np.arange(9), 8)
    assert fit_calibration(features_of(nine), nine) is None
    assert fit_calibration(features_of(np.arange(30)), np.arange(30)) is None  # one crop of each person
    assert fit_calibration(np.empty((0, 4), np.float32), []) is None
    same = np.tile(np.eye(1, 8, dtype=np.float32), (len(PERSONS), 1))
    assert fit_calibration(same, PERSONS) is None  # a collapsed model: no threshold reaches the precision
    apart = np.eye(20, dtype=np.float32)
    assert fit_calibration(apart, np.arange(20) % 10) is None  # no two crops are near enough to be one person


def test_probability_of_log_odds():
    assert probability(np.array([0, np.log(3), -1000, 1000])).tolist() == pytest.approx([0.5, 0.75, 0, 1])


def test_it_is_stored_with_the_threshold(tmp_path, fitted):
    threshold = Threshold(0.5, 0.4, 0.6, 0.1, 0.9, 10, 5, 20, calibration=fitted)
    save_thresholds(tmp_path, {"vision": threshold, "llm": replace(threshold, calibration=None)})
    assert load_thresholds(str(tmp_path)) == {"vision": threshold, "llm": replace(threshold, calibration=None)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distances": (1.0, 0.0)}, "distances are not ascending"),
        ({"log_ratios": (0.0, 1.0)}, "log_ratios are not descending"),
        ({"log_ratios": (0.0,)}, "2 distances have 1 log_ratios"),
        ({"merge": (1.0, 2.0, 3.0, 4.0, 5.0)}, "the odds rise with the distance"),
        ({"merge": (1.0,)}, "merge"),
        ({"precision": 2.0}, "precision"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, change, message):
    calibration = replace(CALIBRATION, **change)
    threshold = Threshold(0.5, 0.4, 0.6, 0.1, 0.9, 10, 5, 20, calibration=calibration)
    save_thresholds(tmp_path, {"vision": threshold})
    with pytest.raises(UserError, match=message):
        load_thresholds(str(tmp_path))
