"""`load_reid_dataset`: readers by name, saved folders, joined texts, and mistakes by their message."""

import json

import pytest
from datasets import DatasetDict, load_from_disk
from PIL import Image

from modeling_mllmreid.data.captions import TextRecord, append_records
from modeling_mllmreid.data.contract import FEATURES, image_sources
from modeling_mllmreid.data.images import check_images, open_image
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.utils.errors import UserError

TRAIN = "bounding_box_train/0001_c1s1_000001_01.jpg"
CAPTION = "a woman in a red coat"


@pytest.fixture
def root(tmp_path):
    paths = [TRAIN, "query/0002_c1s1_000001_01.jpg", "bounding_box_test/0002_c2s1_000001_01.jpg"]
    for number, path in enumerate(paths):
        (tmp_path / path).parent.mkdir()
        Image.new("RGB", (4, 8), (80 * number, 0, 0)).save(tmp_path / path)
    entries = [{"split": "train", "captions": [CAPTION], "file_path": path, "id": 1} for path in paths]
    (tmp_path / "reid_raw.json").write_text(json.dumps(entries))
    return tmp_path


def read(root, **options):
    return load_reid_dataset("market1501", data_dir=root, captions_file=root / "reid_raw.json", **options)


def test_reader_by_name_and_texts_joined(root):
    append_records(root / "t.jsonl", [TextRecord("market1501", "train", TRAIN, 0, CAPTION, "and black boots", {})])
    dataset = read(root, texts=root / "t.jsonl", strict=None)
    assert dataset["train"]["continuation"][:] == [["and black boots"]]
    assert dataset["query"]["continuation"][:] == [[]]
    assert dataset["train"].features == FEATURES
    append_records(root / "other.jsonl", [TextRecord("cuhk_pedes", "train", TRAIN, 0, CAPTION, "x", {})])
    with pytest.raises(UserError, match="other.jsonl: no record belongs to this data set"):
        read(root, texts=root / "other.jsonl")
    append_records(root / "stale.jsonl", [TextRecord("market1501", "train", TRAIN, 0, "a man", "x", {})])
    with pytest.raises(UserError, match="stale.jsonl: the text of caption 0 of bounding_box_train/0001.* is outdated"):
        read(root, texts=root / "stale.jsonl")


def test_saved_folder_with_embedded_images(root):
    dataset = read(root)
    dataset.save_to_disk(root / "saved")
    (root / TRAIN).unlink()
    loaded = load_reid_dataset(root / "saved")
    assert all(loaded[name].features == FEATURES for name in dataset)
    assert loaded["gallery"]["person_id"][:] == dataset["gallery"]["person_id"][:]
    check_images(image_sources(loaded["train"]))
    reordered = loaded["gallery"].select([0])
    assert open_image(image_sources(reordered)[0]).getpixel((0, 0))[0] > 150
    with pytest.raises(UserError, match=f"^{TRAIN}: too large an image"):
        open_image(image_sources(loaded["train"])[0], max_pixels=4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("market", {}, "data set 'market' is unknown .*: did you mean 'market1501'"),
        ("CUHK-PEDES", {}, "did you mean 'cuhk_pedes'"),
        ("market1501", {}, "data_dir is not given"),
        ("market1501", {"data_dir": "x", "jsn": 1}, "no option 'jsn': it takes captions_file, distractors, strict"),
        (".", {}, "not a data set that save_to_disk wrote .*to read an image folder name its reader"),
        (".", {"data_dir": "x", "strict": True}, "saved data set, data_dir, strict does not apply"),
    ],
)
def test_errors(root, monkeypatch, name, options, message):
    monkeypatch.chdir(root)
    with pytest.raises(UserError, match=message):
        load_reid_dataset(name, **options)


def test_saved_folder_without_contract_columns(root):
    dataset = read(root)

    def save(name, changed):
        changed.save_to_disk(root / name)
        return root / name

    with pytest.raises(UserError, match="split 'train' has no column camera_id, source: add it"):
        load_reid_dataset(save("a", dataset.remove_columns(["camera_id", "source"])))
    with pytest.raises(UserError, match="split 'test' is unknown: name the splits among train, val, query, gallery"):
        load_reid_dataset(save("b", DatasetDict(test=dataset["train"])))
    with pytest.raises(UserError, match="a single split: save a DatasetDict"):
        load_reid_dataset(save("c", dataset["train"]))
    renamed = dataset["train"].remove_columns("person_id").rename_column("source", "person_id")
    texts = renamed.add_column("source", ["own"])
    with pytest.raises(UserError, match="column 'person_id' of split 'train' is Value\\('string'\\): save it as"):
        load_reid_dataset(save("d", DatasetDict(train=texts)))
    small = dataset["train"].cast_column("person_id", FEATURES["camera_id"].__class__("int32"))
    path = save("e", DatasetDict(train=small))
    before = sorted(path.rglob("*"))
    assert load_from_disk(str(path))["train"].features != FEATURES
    assert load_reid_dataset(path)["train"].features == FEATURES and sorted(path.rglob("*")) == before
    with pytest.raises(UserError, match="dataset: is empty: give a reader's name"):
        load_reid_dataset("")


def test_a_caption_of_a_saved_data_set_that_would_fill_the_memory_is_refused(disk, tmp_path):
    dataset = load_reid_dataset("market1501", data_dir=disk.people, captions_file=disk.people / "reid_raw.json")
    for length, folder in ((4999, tmp_path / "short"), (5000, tmp_path / "long")):
        long = dataset["train"].map(
            lambda row, index, n=length: {"caption": ["ä" * n]} if index == 1 else row, with_indices=True
        )
        DatasetDict({**dataset, "train": long}).save_to_disk(folder)
    assert len(load_reid_dataset(tmp_path / "short")["train"]["caption"][1][0]) == 4999
    file_name = dataset["train"][1]["file_name"]
    with pytest.raises(UserError, match=rf"^{file_name} \(train\): a caption has 5,000 characters: give fewer than 5,"):
        load_reid_dataset(tmp_path / "long")
