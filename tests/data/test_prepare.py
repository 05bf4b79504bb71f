"""Prepared data: there and back, with the images inside or by path, its card, and a folder that is in use."""

import pytest
from datasets import DatasetDict, load_dataset
from PIL import Image

from modeling_mllmreid.data import image_sources, load_reid_dataset, open_image
from modeling_mllmreid.data import prepare as module
from modeling_mllmreid.data.columns import FEATURES, Row, make_split
from modeling_mllmreid.data.prepare import write_prepared
from modeling_mllmreid.errors import UserError


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_OF_A_SHARD", 2)
    (tmp_path / "images").mkdir()
    for number in range(5):
        Image.new("RGB", (6, 12), (50 * number, 9, 9)).save(tmp_path / "images" / f"{number}.png")
    parts = {
        "train": [Row(f"{number}.png", number, 1 + number % 2, (f"person {number}",)) for number in range(3)],
        "query": [Row("3.png", 8, 1)],
        "gallery": [Row("4.png", 8, 2)],
    }
    splits = {split: make_split(rows, root=tmp_path / "images", source="t") for split, rows in parts.items()}
    splits["train"] = splits["train"].add_column("track_id", [4, 4, -1])
    return DatasetDict(splits)


@pytest.mark.parametrize("embed", [True, False])
def test_there_and_back(dataset, tmp_path, embed, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_prepared(tmp_path / "out", dataset, name="t", embed=embed, facts={"data set": "t", "captions": None})
    assert sorted(path.name for path in (tmp_path / "out/data").glob("train*")) == [
        "train-00000-of-00002.parquet",
        "train-00001-of-00002.parquet",
    ]
    files = {path: path.read_bytes() for path in (tmp_path / "images").iterdir()}
    if embed:
        for path in files:
            path.unlink()
    back = load_reid_dataset(tmp_path / "out")
    assert list(back) == list(dataset) and back["train"]["track_id"][:] == [4, 4, -1]
    for split, part in dataset.items():
        assert all(back[split].features[name] == kind for name, kind in FEATURES.items())
        for column in FEATURES:
            if column != "image":
                assert back[split][column][:] == part[column][:]
    pixels = [open_image(source).getpixel((0, 0)) for source in image_sources(back["train"])]
    assert pixels == [(0, 9, 9), (50, 9, 9), (100, 9, 9)]
    if embed:
        assert image_sources(back["query"])[0].read() == files[tmp_path / "images/3.png"]  # the bytes as they were
    assert len(load_dataset(str(tmp_path / "out"), split="gallery")) == 1  # as anybody loads it
    text = (tmp_path / "out/README.md").read_text()
    assert "| train | 3 | 3 | 2 | 3 |" in text and "- data set: t" in text and "captions:" not in text
    assert "Responsible use" in text and ("in the tables" in text) == embed


def test_a_folder_in_use_is_left_alone(dataset, tmp_path):
    (tmp_path / "out/data").mkdir(parents=True)
    with pytest.raises(UserError, match="out: exists and is not empty: remove it or give another"):
        write_prepared(tmp_path / "out", dataset, name="t", facts={})
    (tmp_path / "images/3.png").unlink()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match="3.png: cannot be read .*: restore the image or leave it out"):
        write_prepared(tmp_path / "new", dataset, name="t", facts={})
    assert sorted(path.name for path in tmp_path.iterdir()) == before
