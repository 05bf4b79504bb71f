"""DukeMTMC-reID, Occluded-Duke, PersonX, RandPerson and Market-1501's distractors: trees of their names and counts."""

import itertools
import logging

import pytest

from modeling_mllmreid.data import load_reid_dataset
from modeling_mllmreid.errors import UserError

DUKE = "{person:04d}_c{camera}_f{number:07d}.jpg"
MARKET = "{person:04d}_c{camera}s1_{number:06d}_01.jpg"


def fill(folder, name, images, persons, cameras, first=1):
    """So many empty files of so many persons, numbered from `first` with gaps, over the cameras in turn."""
    folder.mkdir(parents=True)
    for number, person in zip(range(images), itertools.cycle(range(first, first + 2 * persons, 2)), strict=False):
        (folder / name.format(person=person, camera=1 + number % cameras, number=number)).touch()


@pytest.mark.parametrize(
    ("name", "folder", "counts"),
    [
        ("dukemtmc", "DukeMTMC-reID", [(16_522, 702), (2_228, 702), (17_661, 1_110)]),
        ("occluded_duke", "Occluded_Duke", [(15_618, 702), (2_210, 519), (17_661, 1_110)]),
    ],
)
def test_the_published_counts_pass_and_the_withdrawal_is_said(tmp_path, caplog, name, folder, counts):
    for part, (images, persons) in zip(("bounding_box_train", "query", "bounding_box_test"), counts, strict=True):
        fill(tmp_path / folder / part, DUKE, images, persons, 8)
    dataset = load_reid_dataset(name, data_dir=tmp_path, strict=True)
    assert [len(dataset[split]) for split in ("train", "query", "gallery")] == [images for images, _ in counts]
    assert set(dataset["query"]["camera_id"]) == set(range(1, 9)) and set(dataset["train"]["source"]) == {name}
    assert len(caplog.records) == 1 and "2019" in caplog.text and "think of using another set" in caplog.text
    next((tmp_path / folder / "query").iterdir()).unlink()
    with pytest.raises(UserError, match=f"not the published .*: query has {counts[1][0] - 1:,} rows"):
        load_reid_dataset(name, data_dir=tmp_path, strict=True)


def test_market1501_at_full_size_with_distractors(tmp_path, caplog):
    root = tmp_path / "Market-1501-v15.09.15"
    fill(root / "bounding_box_train", MARKET, 12_936, 751, 6)
    fill(root / "query", MARKET, 3_368, 750, 6, first=2)
    fill(root / "bounding_box_test", MARKET, 13_115, 750, 6, first=2)
    for number in range(2_798 + 3_819):
        person = "0000" if number < 2_798 else "-1"
        (root / "bounding_box_test" / f"{person}_c{1 + number % 6}s2_{number:06d}_02.jpg").touch()
    with caplog.at_level(logging.WARNING):
        dataset = load_reid_dataset("market1501", data_dir=tmp_path, strict=True)
    assert not caplog.records and dataset["gallery"]["person_id"][:].count(0) == 2_798
    fill(root / "images", MARKET, 300, 200, 6, first=9000)
    more = load_reid_dataset("market1501", data_dir=tmp_path, distractors="images")
    assert len(more["gallery"]) == 15_913 + 300 and more["gallery"]["person_id"][:].count(0) == 2_798 + 300
    with pytest.raises(UserError, match="nowhere: no such folder: give the name of the distractors' folder"):
        load_reid_dataset("market1501", data_dir=tmp_path, distractors="nowhere")
    with pytest.raises(UserError, match="'../x' is not inside the data folder"):
        load_reid_dataset("market1501", data_dir=tmp_path, distractors="../x")


def test_made_sets_differ_by_letter(tmp_path):
    (tmp_path / "randperson_subset").mkdir()
    (tmp_path / "randperson_subset" / "000012_s03_c07_f000228.jpg").touch()
    train = load_reid_dataset("randperson", data_dir=tmp_path)["train"]
    assert (train["person_id"][:], train["camera_id"][:]) == ([12], [7])
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (tmp_path / "x" / folder).mkdir(parents=True)
        (tmp_path / "x" / folder / "0001_c6s2_01.jpg").touch()
    assert load_reid_dataset("personx", data_dir=tmp_path / "x")["query"]["camera_id"][:] == [6]
    with pytest.raises(UserError, match="0001_c6s2_01.jpg: not a name like 0005_c2_f0046985.jpg"):
        load_reid_dataset("dukemtmc", data_dir=tmp_path / "x")


def test_rows_that_cannot_be_used_are_named_or_left_out_and_listed(tmp_path, caplog):
    root = tmp_path / "set"
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        fill(root / part, MARKET, 6, 3, 2)
        (root / part / "Thumbs.db").touch()
    (root / "query" / "0003_C1S1_000001_01.JPG").touch()
    (root / "query" / "holiday.png").touch()
    with pytest.raises(UserError, match="query/0003_C1S1_000001_01.JPG: not a name like 0002_c1s1"):
        load_reid_dataset("market1501", data_dir=root)
    listed = tmp_path / "skipped.txt"
    dataset = load_reid_dataset("market1501", data_dir=root, on_error="skip", skipped_file=listed)
    assert len(dataset["query"]) == 6 and "2 rows were left out, listed in" in caplog.text
    assert [line.split(": ")[0].rsplit("/", 1)[1] for line in listed.read_text().splitlines()] == [
        "0003_C1S1_000001_01.JPG",
        "holiday.png",
    ]
    with pytest.raises(UserError, match="on_error: unknown 'ignore': use one of stop, skip"):
        load_reid_dataset("market1501", data_dir=root, on_error="ignore")
