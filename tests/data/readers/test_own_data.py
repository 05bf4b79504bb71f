"""Own data: folders, tables and data sets of the `datasets` library, their splits, and errors by row."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture

from modeling_mllmreid.data.contract import FEATURES, image_sources
from modeling_mllmreid.data.images import open_image
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.utils.errors import UserError


def picture(path, color="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.new("RGB", (4, 8), color).save(path)
    return path


@pytest.fixture
def people(tmp_path):
    """Six people with four images each, in a folder for each."""
    for person in ("ANNA", "BEN", "CLEO", "DAN", "EVE", "FAY"):
        for number in range(4):
            picture(tmp_path / "data" / person / f"{number}.jpg")
    return tmp_path / "data"


def test_folders_get_splits_that_stay(people, tmp_path):
    dataset = load_reid_dataset("folders", data_dir=people)
    assert list(dataset) == ["train", "query", "gallery"]
    test_people = set(dataset["query"]["person_name"])
    assert len(test_people) == 3 and test_people == set(dataset["gallery"]["person_name"])
    assert test_people.isdisjoint(dataset["train"]["person_name"]) and len(dataset["train"]) == 12
    names = {**dict(zip(dataset["train"]["person_name"], dataset["train"]["person_id"], strict=True))}
    assert all("ABCDEF".index(name[0]) == number for name, number in names.items())
    assert set(dataset["query"]["camera_id"]) == {-1} and open_image(image_sources(dataset["query"])[0]).size == (4, 8)
    written = json.loads((people / "splits.json").read_text())
    assert (written.pop("test_share"), written.pop("split_seed")) == (0.5, 0)
    assert {split: set(rows) for split, rows in written.items()} == {
        name: set(split["file_name"]) for name, split in dataset.items()
    }
    again = load_reid_dataset("folders", data_dir=people)  # the written splits decide
    assert again["train"]["file_name"][:] == dataset["train"]["file_name"][:]
    other = load_reid_dataset("folders", data_dir=people, split_seed=5, splits_file=tmp_path / "s.json", test_share=0.2)
    assert len(set(other["query"]["person_id"])) == 1
    picture(people / "GUS/0.jpg")
    (people / "ANNA/0.jpg").unlink()
    notes: list[str] = []
    fewer = load_reid_dataset("folders", data_dir=people, notes=notes)
    assert sum(map(len, fewer.values())) == sum(map(len, dataset.values())) - 1
    assert f"{people}/splits.json: 1 of its files are not in the data (ANNA/0.jpg) and left out" in notes


def test_folders_named_like_splits(tmp_path):
    for path in ("train/7/1.jpg", "train/12/1.PNG", "query/3/1.jpg", "gallery/3/2.jpg"):
        picture(tmp_path / path)
    dataset = load_reid_dataset("folders", data_dir=tmp_path)
    assert list(dataset) == ["train", "query", "gallery"] and dataset["train"]["person_id"][:] == [12, 7]
    assert not (tmp_path / "splits.json").exists()


def test_wrong_folders(people, tmp_path):
    picture(people / "loose.jpg")
    with pytest.raises(UserError, match="loose.jpg: next to the persons' folders: move it into one of them"):
        load_reid_dataset("folders", data_dir=people)
    (people / "loose.jpg").unlink()
    (people / "NOBODY").mkdir()
    with pytest.raises(UserError, match="NOBODY: no image in it: add some or remove the folder"):
        load_reid_dataset("folders", data_dir=people)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no person's folder with images: give a folder like ANNA/1.jpg"):
        load_reid_dataset("folders", data_dir=tmp_path / "empty")
    picture(tmp_path / "loose/1.jpg")
    with pytest.raises(
        UserError, match="loose: 1 images and no folder of a person: move each image into a folder with"
    ):
        load_reid_dataset("folders", data_dir=tmp_path / "loose")
    picture(tmp_path / "two/A/1.jpg")
    picture(tmp_path / "two/B/1.jpg")
    with pytest.raises(UserError, match="2 people, test_share 0.5: too few"):
        load_reid_dataset("folders", data_dir=tmp_path / "two")


ROWS = [
    {"file_name": "a.jpg", "person_id": "p9", "camera_id": "door", "caption": "a man", "split": "train", "track_id": 4},
    {"file_name": "a.jpg", "person_id": "p9", "camera_id": "door", "caption": "red", "split": "train", "track_id": 4},
    {"file_name": "b.jpg", "person_id": "p1", "camera_id": "yard", "caption": None, "split": "query", "track_id": None},
    {"file_name": "b/c.jpg", "person_id": "p1", "camera_id": None, "caption": "x", "split": "gallery", "track_id": 5},
]


def write_table(root, rows, kind):
    for name in ("a.jpg", "b.jpg", "b/c.jpg"):
        picture(root / name)
    if kind == "parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), root / "metadata.parquet")
    elif kind == "jsonl":
        (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(rows[0]), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
        (root / "metadata.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_tables(tmp_path, kind):
    dataset = load_reid_dataset("table", data_dir=write_table(tmp_path, ROWS, kind))
    train, query, gallery = (dataset[split] for split in ("train", "query", "gallery"))
    assert train["caption"][:] == [["a man", "red"]] and train["person_id"][:] == [1] and query["person_id"][:] == [0]
    assert train["person_name"][:] == ["p9"] and train["track_id"][:] == [4] and query["track_id"][:] == [-1]
    assert (train["camera_id"][:], query["camera_id"][:], gallery["camera_id"][:]) == ([0], [1], [-1])
    assert gallery["file_name"][:] == ["b/c.jpg"] and query["caption"][:] == [[]]
    assert all(dataset[split].features[name] == kind for split in dataset for name, kind in FEATURES.items())


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file_name": "../x.jpg"}, "row 5: path '../x.jpg' is not inside the data folder"),
        ({"file_name": "/x.jpg"}, "row 5: path '/x.jpg' is not inside the data folder"),
        ({"file_name": "no.jpg"}, "row 5: there is no image .*no.jpg: restore it or remove the row"),
        ({"person_id": ""}, "row 5: file_name 'b.jpg', person_id '': give both"),
        ({"split": "test"}, "row 5: split 'test' is unknown: give train, val, query, gallery"),
        ({"caption": "x" * 5000}, "row 5: caption: not a text of 1 to 4,999 characters"),
        ({"caption": " "}, "row 5: caption: not a text of"),
        ({"split": "query"}, "row 5: b.jpg has a row already: keep one, or give it another caption"),
    ],
)
def test_wrong_rows(tmp_path, row, message):
    wrong = {**ROWS[2], "split": "val", **row}
    write_table(tmp_path, [*ROWS, wrong], "jsonl")
    with pytest.raises(UserError, match=f"metadata.jsonl: {message}"):
        load_reid_dataset("table", data_dir=tmp_path)
    kept = load_reid_dataset("table", data_dir=tmp_path, on_error="skip", skipped_file=tmp_path / "skipped.txt")
    assert sum(map(len, kept.values())) == 3 and "row 5" in (tmp_path / "skipped.txt").read_text()


def test_wrong_tables(tmp_path):
    with pytest.raises(UserError, match="none of metadata.csv, metadata.jsonl, metadata.parquet: give data_dir a"):
        load_reid_dataset("table", data_dir=tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,pid\na.jpg,1\n")
    with pytest.raises(UserError, match="metadata.csv: no column person_id, but file_name, pid: rename or add it"):
        load_reid_dataset("table", data_dir=tmp_path)
    (tmp_path / "metadata.csv").write_bytes(b"file_name,person_id\n\xff\xfe,1,2\n")
    with pytest.raises(UserError, match="metadata.csv: not readable"):
        load_reid_dataset("table", data_dir=tmp_path)
    (tmp_path / "metadata.jsonl").write_text("{}")
    with pytest.raises(UserError, match="metadata.csv and metadata.jsonl of"):
        load_reid_dataset("table", data_dir=tmp_path)


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A data set as others publish it, as Parquet, its splits train and test."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    paths = [str(picture(tmp_path / f"{number}.png", (20 * number, 0, 0))) for number in range(8)]
    features = Features({"img": Image(), "pid": Value("string"), "cam": Value("int32"), "text": Value("string")})
    rows = {"img": paths, "pid": list("bbccaadd"), "cam": [0, 1] * 4, "text": ["one", ""] * 4}
    whole = Dataset.from_dict(rows, features=features)
    (tmp_path / "hub/data").mkdir(parents=True)
    for name, split in DatasetDict(train=whole.select(range(4)), test=whole.select(range(4, 8))).items():
        split.to_parquet(tmp_path / f"hub/data/{name}-00000-of-00001.parquet")
    return tmp_path / "hub"


def test_mapped_data_set(foreign):
    columns = {"image": "img", "person_id": "pid", "camera_id": "cam", "caption": "text"}
    dataset = load_reid_dataset(foreign, columns=columns)
    assert set(dataset) == {"train", "query", "gallery"} and len(dataset["query"]) + len(dataset["gallery"]) == 4
    assert set(dataset["query"]["person_id"]) == set(dataset["gallery"]["person_id"]) == {0, 3}
    assert dataset["train"]["person_id"][:] == [1, 1, 2, 2] and dataset["train"]["person_name"][:] == list("bbcc")
    assert dataset["train"]["caption"][:] == [["one"], [], ["one"], []]
    assert dataset["train"]["camera_id"][:] == [0, 1, 0, 1]
    assert open_image(image_sources(dataset["train"])[1]).getpixel((0, 0)) == (20, 0, 0)
    with pytest.raises(UserError, match="split train: no column 'image' for image, but img, pid, cam, text: name it"):
        load_reid_dataset(foreign, columns={})
    with pytest.raises(UserError, match="columns: 'pid' is not a column of the contract: use image, person_id"):
        load_reid_dataset(foreign, columns={"pid": "pid"})
    with pytest.raises(UserError, match="data set /absent/x: cannot be loaded"):
        load_reid_dataset("/absent/x", columns=columns)
