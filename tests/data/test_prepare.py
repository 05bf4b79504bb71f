"""Prepared data: the round trip with images inside or by path, the card, and existing folders."""

import gc
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import DatasetDict, config, load_dataset
from PIL import Image

from modeling_mllmreid.data import prepare as module
from modeling_mllmreid.data.contract import FEATURES, Sample, image_sources, make_split
from modeling_mllmreid.data.images import open_image
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.data.prepare import read_prepared, write_prepared
from modeling_mllmreid.utils.errors import UserError


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 2)
    (tmp_path / "images").mkdir()
    for number in range(5):
        Image.new("RGB", (6, 12), (50 * number, 9, 9)).save(tmp_path / "images" / f"{number}.png")
    samples = {
        "train": [Sample(f"{number}.png", number, 1 + number % 2, (f"person {number}",)) for number in range(3)],
        "query": [Sample("3.png", 8, 1)],
        "gallery": [Sample("4.png", 8, 2)],
    }
    splits = {split: make_split(rows, root=tmp_path / "images", source="t") for split, rows in samples.items()}
    splits["train"] = splits["train"].add_column("track_id", [4, 4, -1])
    return DatasetDict(splits)


@pytest.mark.parametrize("embed", [True, False])
def test_round_trip(dataset, tmp_path, embed, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_prepared(tmp_path / "out", dataset, name="t", embed=embed, metadata={"data set": "t", "captions": None})
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
    for name, split in dataset.items():
        assert all(back[name].features[column] == kind for column, kind in FEATURES.items())
        for column in FEATURES:
            if column != "image":
                assert back[name][column][:] == split[column][:]
    pixels = [open_image(source).getpixel((0, 0)) for source in image_sources(back["train"])]
    assert pixels == [(0, 9, 9), (50, 9, 9), (100, 9, 9)]
    if embed:
        assert image_sources(back["query"])[0].read() == files[tmp_path / "images/3.png"]  # the bytes as they were
    assert len(load_dataset(str(tmp_path / "out"), split="gallery")) == 1  # as anybody loads it
    text = (tmp_path / "out/README.md").read_text()
    assert "| train | 3 | 3 | 2 | 3 |" in text and "- data set: t" in text and "captions:" not in text
    assert "Responsible use" in text and ("in the tables" in text) == embed


def test_existing_folder_is_not_replaced(dataset, tmp_path):
    (tmp_path / "out/data").mkdir(parents=True)
    with pytest.raises(UserError, match="out: exists and is not empty: remove it or give another"):
        write_prepared(tmp_path / "out", dataset, name="t", metadata={})
    (tmp_path / "images/3.png").unlink()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match="3.png: cannot be read .*: restore the image or leave it out"):
        write_prepared(tmp_path / "new", dataset, name="t", metadata={})
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def shards(folder):
    return sorted(path.name for path in (folder / "data").iterdir())


def one_person(tmp_path, number):
    """A data set of one image whose person has this number."""
    image = tmp_path / f"{number}.png"
    Image.new("RGB", (2, 2), (number, 0, 0)).save(image)
    return DatasetDict(train=make_split([Sample(image.name, number, 1)], root=tmp_path, source="t"))


def test_folders_with_the_same_name_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, place in enumerate(("x/people", "y/people")):
        write_prepared(tmp_path / place, one_person(tmp_path, number), name="t", metadata={})
    for columns in (None, {}):
        for number, place in enumerate(("x/people", "y/people")):
            for name in (place, tmp_path / place):
                dataset = load_reid_dataset(name, columns=columns)
                assert dataset["train"]["person_id"][:] == [number]
                assert open_image(image_sources(dataset["train"])[0]).getpixel((0, 0)) == (number, 0, 0)
    for path in (tmp_path / "x/people").rglob("*.parquet"):
        path.unlink()
    (tmp_path / "x/people/README.md").unlink()
    (tmp_path / "x/people/data").rmdir()
    write_prepared(tmp_path / "x/people", one_person(tmp_path, 7), name="t", metadata={})
    assert load_reid_dataset("x/people")["train"]["person_id"][:] == [7]


def test_reading_writes_no_cache(tmp_path, monkeypatch):
    write_prepared(tmp_path / "out", one_person(tmp_path, 1), name="t", metadata={})
    for person in ("anna", "ben"):
        (tmp_path / "pictures/train" / person).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / f"pictures/train/{person}/1.png")
    for folder in ("cache", "temporary"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for path, columns in (("out", None), ("out", {}), ("pictures", {"person_id": "label"})):
        split = load_reid_dataset(tmp_path / path, columns=columns)["train"]
        write_prepared(tmp_path / f"again {path} {columns is None}", DatasetDict(train=split), name="t", metadata={})
        assert open_image(image_sources(split.select([0]))[0]).size == (2, 2)
    assert not list((tmp_path / "cache").rglob("*")) and not list((tmp_path / "temporary").rglob("*.*"))


def test_images_in_archives_are_refused(tmp_path):
    (tmp_path / "set").mkdir()
    image = tmp_path / "1.png"
    Image.new("RGB", (2, 2)).save(image)
    with zipfile.ZipFile(tmp_path / "set/train.zip", "w") as archive:
        archive.write(image, "1.png")
        archive.writestr("metadata.jsonl", '{"file_name": "1.png", "pid": "anna"}')
    with pytest.raises(UserError, match="set.*: its images (are in archives|are not files .*): unpack"):
        load_reid_dataset(tmp_path / "set", columns={"person_id": "pid"})


def test_incomplete_folder(dataset, tmp_path):
    write_prepared(tmp_path / "out", dataset, name="t", metadata={})
    data = tmp_path / "out/data"
    first, second = (data / f"train-0000{number}-of-00002.parquet" for number in (0, 1))
    content = second.read_bytes()

    def refused(message):
        with pytest.raises(UserError, match=message) as caught:
            load_reid_dataset(tmp_path / "out")
        assert "\n" not in str(caught.value)

    second.unlink()
    refused("train-00001-of-00002.parquet is missing: restore it or prepare the data again")
    second.write_bytes(content[:-9])
    refused("train-00001-of-00002.parquet: not readable")
    second.write_bytes(b"")
    refused("train-00001-of-00002.parquet: not readable")
    second.write_bytes(content)
    for name in ("train-00000-of-00001.parquet", "train-00001-of-00003.parquet"):
        (data / name).write_bytes(content)
        refused("are of two runs: prepare the data again")
        (data / name).unlink()
    (data / "people.parquet").write_bytes(content)
    refused("people.parquet: is not a file like train-00000-of-00001.parquet: move it away")
    (data / "people.parquet").unlink()
    pa.parquet.write_table(pa.table({"a": [1]}), second)
    refused("train-00001-of-00002.parquet: has other columns than train-00000-of-00002.parquet")
    pa.parquet.write_table(
        pa.table(
            {"a": [1]},
        ).replace_schema_metadata({"huggingface": "{x"}),
        second,
    )
    first.unlink()
    second.rename(data / "train-00000-of-00001.parquet")
    refused("not readable|no column")


def test_concurrent_and_killed_writers(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "ROWS_PER_SHARD", 1)
    for number in range(4):
        Image.new("RGB", (2, 2)).save(tmp_path / f"{number}.png")

    def rows_of(person, count):
        rows = [Sample(f"{number}.png", person, 1) for number in range(count)]
        return DatasetDict(train=make_split(rows, root=tmp_path, source="t"))

    # As a run that was killed leaves it, under the name that older versions used.
    write_prepared(tmp_path / ".out.part", rows_of(9, 4), name="t", metadata={})
    both, ends = threading.Barrier(2), []
    write = module._write_shard

    def together(*arguments):
        if "00000-of" in arguments[0].name:
            both.wait(timeout=30)
        write(*arguments)

    monkeypatch.setattr(module, "_write_shard", together)

    def run(person, count):
        try:
            write_prepared(tmp_path / "out", rows_of(person, count), name="t", metadata={})
            ends.append("written")
        except UserError as error:
            ends.append(str(error))

    runs = [threading.Thread(target=run, args=pair) for pair in ((1, 2), (2, 3))]
    for thread in runs:
        thread.start()
    for thread in runs:
        thread.join()
    assert sorted(end == "written" for end in ends) == [False, True]
    assert "another run has written it in the meantime" in "".join(ends)
    people = load_reid_dataset(tmp_path / "out")["train"]["person_id"][:]
    assert people in ([1, 1], [2, 2, 2]) and len(shards(tmp_path / "out")) == len(people)
    assert not list(tmp_path.glob(".out.*.part"))


def test_output_must_not_be_in_an_input(dataset, tmp_path):
    for inside in ("images/prepared", "images/anna/prepared", "images"):
        with pytest.raises(UserError, match="an input: give another path|exists and is not empty"):
            write_prepared(tmp_path / inside, dataset, name="t", metadata={}, inputs=[tmp_path / "images"])
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == [f"{number}.png" for number in range(5)]


def test_metadata_in_the_card_is_escaped(dataset, tmp_path):
    metadata = {"data set": "a\n---\n# Free\nlicense: mit", "captions": "<script>[x](http://y)", "x\n## y": 1}
    write_prepared(tmp_path / "out", dataset, name="x\nlicense: mit\n---\n# Title", metadata=metadata)
    lines = (tmp_path / "out/README.md").read_text().splitlines()
    head = lines[: lines.index("---", 1)]
    assert not any(line.startswith("license") for line in lines) and "tags: [person-re-identification]" in head
    assert sum(line.startswith("# ") for line in lines) == 1 and "<script>" not in "".join(lines)
    assert [line for line in lines if line.startswith("## ")] == ["## Origin", "## Responsible use"]


def test_reading_needs_the_memory_of_one_copy(tmp_path):
    noise = Image.effect_noise((300, 300), 90)
    names = []
    for number in range(40):
        noise.rotate(9 * number).save(tmp_path / f"{number}.png")
        names.append(Sample(f"{number}.png", number, 1))
    dataset = DatasetDict(train=make_split(names, root=tmp_path, source="t"))
    write_prepared(tmp_path / "out", dataset, name="t", metadata={})
    size = sum(Path(source).stat().st_size for source in image_sources(dataset["train"]))
    gc.collect()
    before = pa.total_allocated_bytes()
    back = read_prepared(tmp_path / "out")
    gc.collect()
    for _ in range(100):
        used = pa.total_allocated_bytes() - before
        if used < 1.5 * size:
            break
        time.sleep(0.05)  # a thread of Arrow may hold its last buffer for a moment
    assert len(back["train"]) == 40 and size > 1_000_000 and used < 1.5 * size
