"""The Market-1501 reader: splits, junk and distractors, order, captions, counts, and every wrong folder."""

import json
import logging
from dataclasses import replace

import pytest
from PIL import Image

from modeling_mllmreid.data.contract import FEATURES, image_sources
from modeling_mllmreid.data.readers import market1501
from modeling_mllmreid.data.readers.market1501 import MARKET1501, read_market1501
from modeling_mllmreid.utils.errors import UserError

NAMES = {
    "bounding_box_train": ["0007_c2s1_000451_03.jpg", "0002_c1s1_000451_03.jpg", "0002_c6s3_000001_01.jpg"],
    "query": ["0003_c1s1_000001_00.jpg"],
    "bounding_box_test": [
        "0003_c2s1_000001_01.jpg",
        "0000_c3s1_000001_01.jpg",
        "-1_c1s1_000401_03.jpg",
        "0003_c1s2_000001_01.jpg",
    ],
}


def write_set(root, names=NAMES):
    for folder, files in names.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in files:
            Image.new("RGB", (4, 8)).save(root / folder / name)
    return root


def test_persons_cameras_junk_distractors_and_order(tmp_path):
    # A parent folder that looks like a name must not be parsed.
    root = write_set(tmp_path / "0009_c9s1_000001_01.jpg")
    (root / "query" / "Thumbs.db").touch()
    (root / "query" / "readme.txt").touch()
    dataset = read_market1501(root)
    assert list(dataset) == ["train", "query", "gallery"]
    assert all(split.features == FEATURES for split in dataset.values())
    train, gallery = dataset["train"], dataset["gallery"]
    assert list(zip(train["person_id"], train["camera_id"], strict=True)) == [(2, 1), (2, 6), (7, 2)]
    assert list(zip(gallery["person_id"], gallery["camera_id"], strict=True)) == [(0, 3), (3, 1), (3, 2)]
    assert train["file_name"][0] == "bounding_box_train/0002_c1s1_000451_03.jpg"
    assert image_sources(train)[0] == str(root / train["file_name"][0])
    assert train["image"][0].size == (4, 8)
    assert set(train["source"]) == {"market1501"} and train["caption"][0] == train["continuation"][0] == []


def test_archive_folder_does_not_change_file_names(tmp_path):
    inner = write_set(tmp_path / MARKET1501.archive[0])
    assert read_market1501(tmp_path)["query"]["file_name"][:] == read_market1501(inner)["query"]["file_name"][:]


def test_only_train_or_only_query_and_gallery(tmp_path):
    write_set(tmp_path / "test", {name: NAMES[name] for name in ("query", "bounding_box_test")})
    write_set(tmp_path / "train", {"bounding_box_train": NAMES["bounding_box_train"]})
    assert list(read_market1501(tmp_path / "test")) == ["query", "gallery"]
    assert list(read_market1501(tmp_path / "train")) == ["train"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "no such folder: give data_dir the folder with bounding_box_train, query, bounding_box_test"),
        ({"images": []}, "not in Market-1501 layout: give data_dir"),
        ({"query": NAMES["query"]}, "no folder bounding_box_test: query and gallery are evaluated together"),
        ({**NAMES, "query": []}, "query: no person image"),
        ({**NAMES, "bounding_box_test": ["-1_c1s1_000401_03.jpg"]}, "bounding_box_test: no person image"),
        ({**NAMES, "query": ["cat.jpg"]}, "query/cat.jpg: not a name like 0002_c1s1_000451_03.jpg: rename"),
        ({**NAMES, "query": ["x0002_c1s1_000451_03.jpg"]}, "x0002_c1s1_000451_03.jpg: not a name"),
        ({**NAMES, "query": ["0002_c1s1_000451_03.jpg.txt.jpg"]}, "03.jpg.txt.jpg: not a name"),
        ({**NAMES, "query": ["0000_c1s1_000451_03.jpg"]}, "person 0 is a distractor of the gallery: number persons"),
    ],
)
def test_wrong_folders(tmp_path, names, message):
    root = tmp_path / "set"
    if names is not None:
        write_set(root, names)
    with pytest.raises(UserError, match=message):
        read_market1501(root)


def entry(path, *captions, split="train", person=1):
    return {"split": split, "captions": list(captions), "file_path": path, "processed_tokens": [], "id": person}


def test_captions_join_by_file_path(tmp_path, caplog):
    root = write_set(tmp_path / "set")
    path = tmp_path / "captions.json"
    junk = entry("bounding_box_test/-1_c1s1_000401_03.jpg", "nobody", split="test")
    path.write_text(json.dumps([junk, entry("./bounding_box_train/0002_c6s3_000001_01.jpg", "a man", "a red man")]))
    with caplog.at_level(logging.WARNING):
        dataset = read_market1501(root, captions_file=path)
    assert dataset["train"]["caption"][:] == [[], ["a man", "a red man"], []]
    assert "6 of 7 images have no entry" in caplog.text
    path.write_text(json.dumps([entry("elsewhere.jpg", "a man")]))
    with pytest.raises(
        UserError, match="no entry names an image of .*: write file_path like bounding_box_train/0002_c1"
    ):
        read_market1501(root, captions_file=path)
    present = entry("bounding_box_train/0002_c6s3_000001_01.jpg", "a man")
    path.write_text(json.dumps([present, entry("bounding_box_train/0002_c6s3_000099_01.jpg", "a man")]))
    with pytest.raises(UserError, match="entry 1, field 'file_path': there is no image .*000099_01.jpg: restore it or"):
        read_market1501(root, captions_file=path)
    path.write_text(json.dumps([entry("../secret.jpg", "a man")]))
    with pytest.raises(UserError, match="entry 0, field 'file_path': .* is not inside the data folder"):
        read_market1501(root, captions_file=path)
    with pytest.raises(UserError, match="nothere.json: cannot be read"):
        read_market1501(root, captions_file=tmp_path / "nothere.json")


def test_published_counts(tmp_path, caplog, monkeypatch):
    own, copy = write_set(tmp_path / "own"), write_set(tmp_path / "Market-1501-v15.09.15")
    with caplog.at_level(logging.WARNING):
        read_market1501(own)
        assert not caplog.records
        read_market1501(copy)
    assert len(caplog.records) == 1
    assert (
        "not the published Market-1501: train has 3 samples, not 12,936; train has 2 identities, not 751" in caplog.text
    )
    with pytest.raises(UserError, match="gallery has 3 samples, not 15,913.*or leave `strict` out"):
        read_market1501(own, strict=True)
    true = {"train": {"samples": 3, "identities": 2}, "query": {"samples": 1, "identities": 1}}
    published = {**true, "gallery": {"samples": 3, "identities": 2}}
    monkeypatch.setattr(market1501, "MARKET1501", replace(MARKET1501, published=published))
    read_market1501(own, strict=True)
    published = {**true, "gallery": {"samples": 4, "identities": 2}}
    monkeypatch.setattr(market1501, "MARKET1501", replace(MARKET1501, published=published))
    caplog.clear()
    read_market1501(own)  # by its numbers of identities it is meant to be the benchmark
    assert "gallery has 3 samples, not 4" in caplog.text
