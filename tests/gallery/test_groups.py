"""Groups of unknown people: the algorithm on small features, and its constraints on random ones."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unknown_people import CALIBRATION, crops_of, features_of

from modeling_mllmreid.evaluation.grouping import grouping_metrics
from modeling_mllmreid.gallery.constraints import Rules
from modeling_mllmreid.gallery.groups import Crops, UnknownPeople, find_groups
from modeling_mllmreid.gallery.rows import Rows
from modeling_mllmreid.gallery.unknown_people import largest_groups
from modeling_mllmreid.utils.errors import UserError

MINUTE = np.timedelta64(60, "s")


def permuted(crops: Crops, order: np.ndarray) -> Crops:
    return Crops(*(column[order] for column in vars(crops).values()))


def test_people_are_found_and_a_stranger_stays_alone():
    persons = np.append(np.repeat(np.arange(12), 6), 12)
    found = find_groups(crops_of(features_of(persons)), CALIBRATION)
    assert grouping_metrics(found.labels, persons).ari == 1
    assert found.labels[0] == 0 and (found.labels == found.labels[-1]).sum() == 1


def test_the_threshold_and_the_suggestions():
    """Groups that the threshold keeps apart are suggested, with a probability between 0.5 and the threshold."""
    persons = np.repeat(np.arange(15), 5)
    crops = crops_of(features_of(persons, noise=0.9))
    default, strict = find_groups(crops, CALIBRATION), find_groups(crops, CALIBRATION, confidence=0.999)
    assert strict.labels.max() > default.labels.max() and len(strict.merges) > len(default.merges)
    confidences = [merge.confidence for merge in strict.merges]
    assert confidences == sorted(confidences, reverse=True) and 0.5 <= confidences[-1] <= confidences[0] < 0.999
    person_of = {label: persons[place] for place, label in reversed(list(enumerate(strict.labels)))}
    assert np.mean([person_of[m.first] == person_of[m.second] for m in strict.merges]) > 0.9
    assert all(merge.first < merge.second for merge in strict.merges)
    with pytest.raises(UserError, match="confidence 1.5: give a probability between 0 and 1"):
        find_groups(crops, CALIBRATION, confidence=1.5)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_few_crops(size):
    features = np.tile(np.eye(1, 8, dtype=np.float32), (size, 1))
    found = find_groups(crops_of(features), CALIBRATION)
    assert found.labels.tolist() == [0] * size and found.merges == []
    assert found.close == ([("crop0000", "crop0001")] if size == 2 else [])


def test_all_identical():
    """More equal crops than neighbours that are compared; known cameras and times split them."""
    features = np.tile(np.eye(1, 8, dtype=np.float32), (150, 1))
    assert set(find_groups(crops_of(features), CALIBRATION).labels) == {0}
    split = find_groups(crops_of(features, np.arange(150) % 2, np.zeros(150)), CALIBRATION).labels
    assert not set(split[::2]) & set(split[1::2])


def test_nobody_is_at_two_places_at_once():
    features = np.tile(np.eye(1, 8, dtype=np.float32), (4, 1))

    def groups(cameras, seconds, **rules) -> list[int]:
        return find_groups(crops_of(features, cameras, seconds), CALIBRATION, Rules(**rules)).labels.tolist()

    assert groups([1, 2, 1, 2], [0, 0.999, 100, 200]).count(0) == 3
    assert groups([1, 2, 1, 2], [0, 1, 100, 200]) == [0] * 4  # the default: less than a second
    assert groups([1, 2, 1, 2], [0, 30, 100, 200], travel_time=MINUTE)[:2] == [0, 1]
    assert groups([1, 2, 1, 2], [0, 30, 100, 200], travel_time=MINUTE, overlapping=[(2, 1)]) == [0] * 4
    assert groups([1, 2, 1, 2], [0, 30, 100, 200], travel_time=MINUTE, overlapping=[(1, 3)]) != [0] * 4
    assert groups([1, 1, 1, 1], [0, 0, 0, 0], travel_time=MINUTE) == [0] * 4  # one camera
    assert groups([-1, 2, -1, 2], [0, 0, 0, None], travel_time=MINUTE) == [0] * 4  # unknown: no rule
    assert groups([1, 2, 1, 2], [0, 0, 0, 0], travel_time=np.timedelta64(0, "s")) == [0] * 4
    with pytest.raises(UserError, match="travel_time -1 seconds: give a time of 0 or more"):
        Rules(travel_time=np.timedelta64(-1, "s"))


def test_tracks_and_decisions_join_and_part():
    far, same = np.eye(4, 8, dtype=np.float32), np.tile(np.eye(1, 8, dtype=np.float32), (4, 1))
    tracks = find_groups(crops_of(far, [1, 1, 2, 1], track_id=[5, 5, 5, -1]), CALIBRATION).labels
    assert tracks.tolist() == [0, 0, 1, 2]  # track 5 of another camera is another one
    joined = find_groups(crops_of(far), CALIBRATION, Rules(same=[("crop0003", "crop0001"), ("crop0001", "gone")]))
    assert joined.labels.tolist() == [0, 1, 2, 1]
    parted = find_groups(crops_of(same), CALIBRATION, Rules(different=[("crop0003", "crop0000")])).labels
    assert parted[3] != parted[0] and len(set(parted)) == 2
    assert not find_groups(crops_of(same[:2]), CALIBRATION, Rules(different=[("crop0001", "crop0000")])).merges


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            {"same": [("crop0000", "crop0001"), ("crop0001", "crop0002")], "different": [("crop0002", "crop0000")]},
            "crops crop0000 and crop0002: a decision says that they are two people, but .*: undo one of the decisions",
        ),
        ({"different": [("crop0003", "crop0004")]}, "crops crop0003 and crop0004: a decision says"),  # one track
        ({"different": [("crop0001", "crop0001")]}, "crops crop0001 and crop0001: a decision says"),
        (
            {"same": [("crop0003", "crop0000")], "travel_time": MINUTE},
            "crops crop0000 and crop0003: cameras 1 and 2 saw them 59.5 seconds apart, so they are two people, .*"
            "correct the times, undo the decision, or give the cameras as overlapping",
        ),
    ],
)
def test_contradictions_name_the_two_crops(rules, message):
    crops = crops_of(np.eye(5, 8), [1, 1, 1, 2, 2], [0, 60, 120, 59.5, 200], [-1, -1, -1, 4, 4])
    with pytest.raises(UserError, match=message):
        find_groups(crops, CALIBRATION, Rules(**rules))


def test_the_largest_groups_come_first():
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3, 4], [2, 1, 5, 2, 7]))
    ids = np.array([f"{number:02d}" for number in range(len(labels))], dtype=object)
    rows = Rows(np.zeros((len(ids), 1), np.float32), {"id": ids})
    found = largest_groups(rows, UnknownPeople(labels, [], []))
    assert list(found) == [4, 2, 0, 3]  # equal sizes by number, and nobody who is alone
    assert all(
        members == [name for name, own in zip(ids, labels, strict=True) if own == g] for g, members in found.items()
    )
    nobody = Rows(np.zeros((0, 1), np.float32), {"id": ids[:0]})
    assert largest_groups(nobody, UnknownPeople(labels[:0], [], [])) == {}


def test_columns_have_one_value_per_crop():
    crops = crops_of(np.eye(3, 8))
    with pytest.raises(UserError, match="3 ids, but"):
        replace(crops, camera_id=crops.camera_id[:2])
    with pytest.raises(UserError, match="ids: one comes twice"):
        replace(crops, ids=crops.ids[[0, 0, 1]])


@st.composite
def galleries(draw) -> tuple[Crops, Rules]:
    """Few people in few directions, equal features among them, with random cameras, times, tracks and decisions."""
    size = draw(st.integers(2, 24))
    seed = draw(st.integers(0, 2**16))
    random = np.random.default_rng(seed)
    noise = draw(st.sampled_from([0.0, 0.3, 1.0]))
    features = features_of(random.integers(0, 4, size), noise, width=6, seed=seed)
    cameras, seconds = random.integers(-1, 3, size), random.integers(0, 30, size).astype(object)
    seconds[random.random(size) < 0.2] = None
    tracks = np.where(random.random(size) < 0.2, random.integers(0, 2, size), -1)
    names = [f"crop{index:04d}" for index in range(size)]
    pair = st.tuples(st.sampled_from(names), st.sampled_from(names))
    decisions = {name: draw(st.lists(pair, max_size=3)) for name in ("same", "different")}
    overlapping = draw(st.lists(st.sampled_from([(0, 1), (2, 1)]), max_size=1))
    travel = np.timedelta64(draw(st.integers(0, 4)), "s")
    return crops_of(features, cameras, seconds, tracks), Rules(**decisions, travel_time=travel, overlapping=overlapping)


@settings(max_examples=80, deadline=None)
@given(galleries(), st.integers(0, 2**16))
def test_constraints_hold_in_any_gallery_and_order(gallery, seed):
    crops, rules = gallery
    order = np.random.default_rng(seed).permutation(len(crops.ids))
    try:
        found = find_groups(crops, CALIBRATION, rules)
    except UserError as error:
        with pytest.raises(UserError) as again:
            find_groups(permuted(crops, order), CALIBRATION, rules)
        assert str(again.value) == str(error) and "two people" in str(error)
        return
    label = dict(zip(crops.ids, found.labels.tolist(), strict=True))
    assert all(label[a] == label[b] for a, b in rules.same) and all(label[a] != label[b] for a, b in rules.different)
    overlapping = {frozenset(pair) for pair in rules.overlapping}
    for i in range(len(crops.ids)):
        for j in range(i):
            cameras = {int(crops.camera_id[i]), int(crops.camera_id[j])}
            together = found.labels[i] == found.labels[j]
            if crops.track_id[i] == crops.track_id[j] != -1 and len(cameras) == 1:
                assert together
            if together and len(cameras) == 2 and -1 not in cameras and cameras not in overlapping:
                # A comparison with NaT is false.
                assert not abs(crops.time[i] - crops.time[j]) < rules.travel_time
    other = find_groups(permuted(crops, order), CALIBRATION, rules)
    assert other.labels.tolist() == found.labels[order].tolist()
    assert (other.merges, other.close) == (found.merges, found.close)
    assert np.unique(found.labels).tolist() == list(range(found.labels.max() + 1))
