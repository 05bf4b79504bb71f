"""The validation split by identity, its query and gallery splits, and training labels."""

import random

import pytest

from modeling_mllmreid.data.contract import Sample, make_split
from modeling_mllmreid.data.splits import label_mapping, split_query_gallery, split_validation
from modeling_mllmreid.utils.errors import UserError


def split_of(pairs, order=None):
    """pairs: (person, camera) of each image; order: seed of a shuffle of the rows."""
    rows = [Sample(f"{i}.jpg", person, camera) for i, (person, camera) in enumerate(pairs)]
    if order is not None:
        random.Random(order).shuffle(rows)
    return make_split(rows, root=".", source="set")


PAIRS = [(10 * person, camera) for person in range(8) for camera in (1, 2, 3) for _ in range(2)]


def names(split):
    return sorted(split["file_name"])


def test_one_image_of_each_person_leaves_nothing_to_find():
    with pytest.raises(UserError, match="each person has one image: a query needs another one to find"):
        split_query_gallery(split_of([(person, -1) for person in range(4)]))


def test_validation_people_depend_on_the_seed_only():
    train, val = split_validation(split_of(PAIRS), val_identities=3, seed=1)
    assert set(train["person_id"]) | set(val["person_id"]) == {10 * i for i in range(8)}
    assert not set(train["person_id"]) & set(val["person_id"]) and len(set(val["person_id"])) == 3
    assert len(train) + len(val) == len(PAIRS)
    again = split_validation(split_of(PAIRS, order=5), val_identities=3, seed=1)
    assert (names(again[0]), names(again[1])) == (names(train), names(val))
    drawn = {tuple(names(split_validation(split_of(PAIRS), val_identities=3, seed=s)[1])) for s in range(5)}
    assert len(drawn) > 1


@pytest.mark.parametrize("number", [-1, 0, 7, 9])
def test_validation_people_out_of_range(number):
    with pytest.raises(UserError, match=f"val_identities is {number} of 8 people .*: give 1 to 6"):
        split_validation(split_of(PAIRS), val_identities=number, seed=0)


def test_validation_of_a_small_split():
    with pytest.raises(UserError, match="training split is empty"):
        split_validation(split_of([]), val_identities=1, seed=0)
    with pytest.raises(UserError, match="val_identities is 1 of 2 people .*: give a training split with more people"):
        split_validation(split_of([(1, 1), (2, 1)]), val_identities=1, seed=0)


def matches(query, gallery):
    """For each query row: does the gallery hold the person under another camera (or is a camera unknown)?"""
    rows = list(zip(gallery["person_id"], gallery["camera_id"], strict=True))
    return [
        any(p == person and (c != camera or c == -1) for p, c in rows)
        for person, camera in zip(query["person_id"], query["camera_id"], strict=True)
    ]


def test_one_query_per_person_and_camera_and_every_query_has_a_match():
    for seed in range(20):
        rng = random.Random(seed)
        pairs = [(rng.randrange(6), rng.choice([1, 2, 3, -1])) for _ in range(30)]
        query, gallery = split_query_gallery(split_of(pairs), seed=seed)
        asked = list(zip(query["person_id"], query["camera_id"], strict=True))
        assert len(asked) == len(set(asked)) and all(matches(query, gallery))
        assert names(query) + names(gallery) and sorted(names(query) + names(gallery)) == names(split_of(pairs))
        again = split_query_gallery(split_of(pairs, order=seed), seed=seed)
        assert (names(again[0]), names(again[1])) == (names(query), names(gallery))


def test_images_that_can_be_queries():
    def asked(*cameras):
        return sorted(split_query_gallery(split_of([(1, camera) for camera in cameras]))[0]["camera_id"])

    assert asked(1, 1, 2, 2, 3, 3) == [1, 2, 3]
    assert asked(1, 1, 2) == [1]  # with camera 2 asking too, camera 1 would have lost its only match
    assert asked(1, 2) == [1]
    assert asked(1, 2, 2) == [2]  # the camera with more images can spare one
    assert asked(-1, -1, -1) == [-1]
    assert asked(1, -1) in ([-1], [1])
    alone = split_of([(1, 1), (1, 1), (2, 1), (2, 2)])
    assert set(split_query_gallery(alone)[0]["person_id"]) == {2}
    for useless in ([(1, 1), (1, 1), (2, 3)], [(1, 2), (1, 2), (2, -1)]):
        with pytest.raises(UserError, match="no person with images of two cameras: .* give camera_id -1"):
            split_query_gallery(split_of(useless))


def test_labels_follow_sorted_ids():
    assert label_mapping([30, 2, 30, 700, 2]) == {2: 0, 30: 1, 700: 2}


def test_the_seed_draws_the_validation_people_and_the_queries():
    images = split_of([(person, camera) for person in range(6) for camera in (1, 2) for _ in range(5)])

    def drawn(seed):
        return split_validation(images, val_identities=2, seed=seed)[1]["file_name"][:]

    def asked(**seed):
        return split_query_gallery(images, **seed)[0]["file_name"][:]

    assert drawn(1) == drawn(1) and len({tuple(drawn(seed)) for seed in range(6)}) > 3
    assert asked(seed=1) == asked(seed=1) and asked() == asked(seed=0)
    assert len({tuple(asked(seed=seed)) for seed in range(6)}) == 6


@pytest.mark.parametrize(("people", "number"), [(3, 1), (8, 1), (8, 6)])
def test_limits_of_validation_people(people, number):
    train, val = split_validation(split_of(PAIRS[: 6 * people]), val_identities=number, seed=0)
    assert len(set(val["person_id"])) == number and len(set(train["person_id"])) == people - number
    with pytest.raises(UserError, match="val_identities is 2 of 3 people in the training split: give 1 to 1"):
        split_validation(split_of(PAIRS[:18]), val_identities=2, seed=0)
