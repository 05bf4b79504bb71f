"""The CUHK-PEDES reader: caption queries, image gallery, and every wrong entry by its number and field."""

import json

import pytest
from PIL import Image

from modeling_mllmreid.data.contract import image_sources
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.data.readers.caption_sets import read_cuhk_pedes
from modeling_mllmreid.utils.errors import UserError

ENTRIES = [
    {"split": "train", "captions": ["a", "b"], "file_path": "CUHK01/1.png", "processed_tokens": [], "id": 1},
    {"split": "train", "captions": [], "file_path": "CUHK01/2.png", "processed_tokens": [], "id": 1},
    {"split": "val", "captions": ["c"], "file_path": "CUHK01/3.png", "id": 2},
    {"split": "test", "captions": ["d", "e", "f"], "file_path": "test_query/4.png", "id": 3},
    {"split": "test", "captions": ["g"], "file_path": "test_query/5.png", "id": 4},
]


def write_set(root, entries, images="imgs"):
    for fields in ENTRIES:
        path = root / images / fields["file_path"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 8)).save(path)
    (root / "reid_raw.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return root


@pytest.mark.parametrize("images", ["imgs", "."])
def test_splits_and_samples(tmp_path, images):
    dataset = read_cuhk_pedes(write_set(tmp_path, ENTRIES, images))
    assert {name: len(split) for name, split in dataset.items()} == {"train": 2, "val": 1, "query": 4, "gallery": 2}
    assert dataset["train"]["caption"][:] == [["a", "b"], []]
    assert dataset["query"]["caption"][:] == [["d"], ["e"], ["f"], ["g"]]
    assert dataset["query"]["person_id"][:] == [3, 3, 3, 4]
    assert dataset["gallery"]["caption"][:] == [["d", "e", "f"], ["g"]]
    assert set(dataset["gallery"]["camera_id"]) == {-1} and set(dataset["val"]["source"]) == {"cuhk_pedes"}
    assert dataset["train"]["file_name"][0] == "CUHK01/1.png"
    assert image_sources(dataset["query"])[3] == str(tmp_path / images / "test_query/5.png")


def changed(number, **fields):
    return [{**e, **fields} if i == number else e for i, e in enumerate(ENTRIES)]


def without(number, field):
    return [{k: v for k, v in e.items() if i != number or k != field} for i, e in enumerate(ENTRIES)]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (without(2, "id"), "entry 2: field id: field required"),
        (without(0, "captions"), "entry 0: field captions: field required"),
        (changed(1, id="7"), "entry 1: field id: input should be a valid integer, not '7'"),
        (changed(1, id=True), "entry 1: field id: input should be a valid integer, not True"),
        (changed(1, captions="a man"), "entry 1: field captions: input should be a valid list, not 'a man'"),
        (
            changed(1, captions=["a " * 2500]),
            "entry 1, field 'captions': one has 5,000 characters: give fewer",
        ),
        (changed(1, captions=["a man", " "]), "entry 1, field 'captions': one is an empty text: correct or remove it"),
        (changed(3, split="dev"), "entry 3: field split: input should be 'train', 'val' or 'test', not 'dev'"),
        (changed(3, file_path="CUHK01/9.png"), "entry 3, field 'file_path': there is no image .*9.png"),
        (changed(3, file_path="../../9.png"), "entry 3, field 'file_path': .* is not inside the data folder"),
        (changed(3, file_path="/etc/9.png"), "entry 3, field 'file_path': .* is not inside the data folder"),
        (changed(3, file_path="CUHK01/./1.png"), "entry 3, field 'file_path': CUHK01/1.png is entry 0 already"),
        ([*ENTRIES, "x"], "entry 5: the whole content: input should be a valid dictionary or .* not 'x'"),
        ({"train": ENTRIES}, "the whole content: input should be a valid .*: give a JSON list of entries"),
        ([], "an empty list: give a JSON list of entries"),
        ('[{"split": ', "not JSON .*: give a JSON list of entries"),
        ([{**ENTRIES[3], "captions": []}], "no entry of split 'test' has a caption"),
    ],
)
def test_wrong_entries(tmp_path, entries, message):
    with pytest.raises(UserError, match=f"reid_raw.json: {message}"):
        read_cuhk_pedes(write_set(tmp_path, entries))


def test_wrong_folder_and_counts(tmp_path, caplog):
    with pytest.raises(UserError, match="no file reid_raw.json: give data_dir the folder with this file and imgs/"):
        read_cuhk_pedes(tmp_path)
    root = write_set(tmp_path / "CUHK-PEDES", ENTRIES)
    read_cuhk_pedes(root)
    assert len(caplog.records) == 1 and "train has 2 captions, not 68,126" in caplog.text
    with pytest.raises(UserError, match="query has 4 samples, not 6,156"):
        read_cuhk_pedes(root, strict=True)
    with pytest.raises(UserError, match="no file captions.json"):
        read_cuhk_pedes(root, json_name="captions.json")


def test_other_schemas(tmp_path):
    """ICFG-PEDES by its own file name; RSTPReid by img_path, with cameras in the names and ids from 0."""
    write_set(tmp_path / "icfg", [])
    (tmp_path / "icfg/ICFG-PEDES.json").write_text(json.dumps(ENTRIES))
    assert set(load_reid_dataset("icfg_pedes", data_dir=tmp_path / "icfg")["query"]["source"]) == {"icfg_pedes"}
    names = ["0000_c14_0031.jpg", "0001_c5_0022.jpg", "0001_c1_0002.jpg"]
    (tmp_path / "rstp/imgs").mkdir(parents=True)
    for name in names:
        Image.new("RGB", (4, 8)).save(tmp_path / "rstp/imgs" / name)
    entries = [
        {"split": split, "captions": ["a", "b"], "img_path": name, "id": number}
        for number, (split, name) in enumerate(zip(("train", "test", "test"), names, strict=True))
    ]
    (tmp_path / "rstp/data_captions.json").write_text(json.dumps(entries))
    dataset = load_reid_dataset("rstpreid", data_dir=tmp_path / "rstp")
    assert dataset["train"]["person_id"][:] == [0] and dataset["train"]["camera_id"][:] == [14]
    assert dataset["query"]["camera_id"][:] == [5, 5, 1, 1] and len(dataset["gallery"]) == 2
    with pytest.raises(UserError, match="data_captions.json: entry 0, field 'img_path': is missing"):
        (tmp_path / "rstp/data_captions.json").write_text(json.dumps(ENTRIES))
        load_reid_dataset("rstpreid", data_dir=tmp_path / "rstp")


def test_invalid_utf8_and_skipped_entries(tmp_path):
    root = write_set(tmp_path, changed(3, file_path="CUHK01/9.png"))
    listed = tmp_path / "skipped.txt"
    dataset = load_reid_dataset("cuhk_pedes", data_dir=root, on_error="skip", skipped_file=listed)
    assert len(dataset["gallery"]) == 1 and "entry 3" in listed.read_text()
    (root / "reid_raw.json").write_bytes(b"[\xff]")
    with pytest.raises(UserError, match=r"reid_raw.json: not UTF-8 text \(byte 1\): save it as UTF-8"):
        read_cuhk_pedes(root)
