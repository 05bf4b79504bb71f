"""Ids and names of people and cameras: ids are text until they are numbered, and the data keeps the names."""

import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as Picture

from modeling_mllmreid.data.combinations import combine
from modeling_mllmreid.data.contract import camera_names, id_text, join_names, number_names, person_names
from modeling_mllmreid.data.inspection import describe
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.data.prepare import read_prepared, write_prepared
from modeling_mllmreid.utils.errors import UserError

SPLITS = ["train", "train", "query", "gallery"]
FILES = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
LONG = "12345678901234567890"


def test_number_names():
    assert number_names(["7", "0", None, str(2**63 - 1)]) == {"7": 7, "0": 0, str(2**63 - 1): 2**63 - 1}
    assert number_names(["1", "01", "001"]) == {"001": 0, "01": 1, "1": 2}
    assert number_names(["100", "1E2"]) == {"100": 0, "1E2": 1}
    assert number_names(["2", "²", "+2", "-2"]) == {"+2": 0, "-2": 1, "2": 2, "²": 3}
    assert number_names([LONG, f"{LONG[:-1]}1", "3"]) == {LONG: 0, f"{LONG[:-1]}1": 1, "3": 2}
    assert number_names([]) == {}
    for one, other in (("anna", "anna "), ("é", "e\u0301"), ("an\u200bna", "anna"), ("\ufeff7", "7")):
        with pytest.raises(UserError, match="look the same") as caught:
            number_names([one, other, "ben"])
        assert ascii(one) in str(caught.value) and ascii(other) in str(caught.value)


def test_id_text():
    cells = [None, "", " ", float("nan"), 5, 5.0, "05", 2**80, "-1"]
    assert [id_text(cell) for cell in cells] == [None, None, None, None, "5", "5", "05", str(2**80), "-1"]
    for cell in (True, 1.5, 2.0**53, float("inf"), [1], {"a": 1}, b"1"):
        with pytest.raises(UserError, match="neither text nor a whole number"):
            id_text(cell)
    with pytest.raises(UserError, match="is not UTF-8 text"):
        id_text("\ud800")
    assert (
        join_names(["ben", "anna", "anna", "cleo", "dan"]) == "anna, ben and 2 more"
        and join_names(["a\nb"]) == r"'a\nb'"
    )


@pytest.mark.parametrize(("kind", "most"), [("float16", 2**11), ("float32", 2**24)])
def test_large_ids_in_small_floats_are_refused(tmp_path, kind, most):
    exact = pa.array(np.array([1, 2, 3, 3], kind))
    assert read(table(tmp_path / "exact", "parquet", exact))[1] == ["1", "2", "3", "3"]
    root = table(tmp_path / "rounded", "parquet", pa.array(np.array([most, most + 1, 3, 3], kind)))
    for options in ({"name_or_path": "table", "data_dir": root}, {"name_or_path": str(root), "columns": {}}):
        with pytest.raises(UserError, match="column person_id is (halffloat|float), which rounds whole numbers from"):
            load_reid_dataset(**options)


@pytest.mark.parametrize("unknown", ["-1", " -1", "-1 ", "-1.0", "\t-1"])
def test_unknown_camera_with_white_space(tmp_path, unknown):
    assert read(table(tmp_path / "t", "csv", ["a", "b", "c", "c"], [unknown, "x", unknown, "x"]))[2] == [-1, 0, -1, 0]


def table(root, kind, persons, cameras=None, **more):
    """Four images with a table that names these persons: two to train, one of a query, one of the gallery."""
    for name in FILES:
        root.mkdir(exist_ok=True)
        Picture.new("RGB", (4, 8)).save(root / name)
    columns = {"file_name": FILES, "person_id": persons, "split": SPLITS, **more}
    if cameras is not None:
        columns["camera_id"] = cameras
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    if kind == "parquet":
        pa.parquet.write_table(pa.table(columns), root / "metadata.parquet")
    elif kind == "jsonl":
        (root / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    else:
        lines = [",".join(columns), *(",".join("" if v is None else str(v) for v in row.values()) for row in rows)]
        (root / "metadata.csv").write_text("\n".join(lines))
    return root


def read(root, **options):
    """(person numbers, person names, camera numbers) of all rows, in the table's order."""
    dataset = load_reid_dataset("table", data_dir=root, **options)
    splits = [dataset[split] for split in ("train", "query", "gallery")]
    return tuple([value for split in splits for value in split[column][:]] for column in COLUMNS)


COLUMNS = ("person_id", "person_name", "camera_id")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("persons", "numbers"),
    [
        ([LONG, f"{LONG[:-1]}1", f"{LONG[:-1]}2", f"{LONG[:-1]}2"], [0, 1, 2, 2]),
        (["1", "01", "001", "001"], [2, 1, 0, 0]),
        (["1E2", "100", "7", "7"], [1, 0, 2, 2]),
        (["²", "2", "anna", "anna"], [2, 0, 1, 1]),
        (["7", "5", "12", "12"], [7, 5, 12, 12]),
    ],
)
def test_table_ids_are_text(tmp_path, kind, persons, numbers):
    found = read(table(tmp_path / "t", kind, persons, ["-1", "", "door", "1"]))
    assert found == (numbers, persons, [-1, -1, 1, 0])


def test_numbers_in_json_and_parquet_are_exact(tmp_path):
    large = 10**22 + 1
    assert read(table(tmp_path / "a", "jsonl", [large, large + 1, 7, 7], [-1, None, 3, 4])) == (
        [0, 1, 2, 2],
        [str(large), str(large + 1), "7", "7"],
        [-1, -1, 3, 4],
    )
    # A column of whole numbers with gaps, as pandas writes it; and one of dictionary codes.
    assert read(table(tmp_path / "b", "parquet", [1, 2, 7, 7], [3.0, None, -1.0, 4.0]))[2] == [3, -1, -1, 4]
    assert read(table(tmp_path / "c", "csv", [1, 2, 7, 7], ["3.0", "", "-1.0", "4.0"]))[2] == [0, -1, -1, 1]
    coded = table(tmp_path / "d", "parquet", pa.array(["x", "y", "01", "01"]).dictionary_encode())
    assert read(coded)[:2] == ([1, 2, 0, 0], ["x", "y", "01", "01"])
    tracks = table(tmp_path / "e", "jsonl", [1, 2, 7, 7], track_id=["x", 1, "-1", None], clothes_id=[5, 6, -1, 6])
    dataset = load_reid_dataset("table", data_dir=tracks)
    assert dataset["train"]["track_id"][:] == [1, 0] and dataset["query"]["track_id"][:] == [-1]
    assert dataset["train"]["clothes_id"][:] == [5, 6] and dataset["query"]["clothes_id"][:] == [-1]


@pytest.mark.parametrize("cell", [1.5, 1e20, True, [1], {"a": 1}])
def test_wrong_ids(tmp_path, cell):
    with pytest.raises(UserError, match=r"metadata.jsonl: row 2: person_id .* is neither text nor a whole number"):
        read(table(tmp_path / "t", "jsonl", [1, cell, 7, 7]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"file_name": "a.jpg", "person_id": NaN}', "line 1: not a JSON object .NaN is not JSON"),
        ('\n{"file_name": "a.jpg", "person_id": 1, "person_id": 2}', "line 2: .*field 'person_id' occurs twice"),
        ("[" * 100_000, "line 1: not a JSON object .*recursion"),
        ("5", "line 1: not a JSON object .not an object"),
        ('{"person_id": ' + "9" * 5000 + "}", "line 1: not a JSON object"),
    ],
)
def test_broken_json_lines(tmp_path, content, message):
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(UserError, match=f"metadata.jsonl: {message}") as caught:
        load_reid_dataset("table", data_dir=tmp_path)
    assert "\n" not in str(caught.value)


HEAD, ROWS = (
    "file_name,person_id,split",
    ["a.jpg,anna,train", "b.jpg,ben,train", "c.jpg,cleo,query", "d.jpg,cleo,gallery"],
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not readable .*Empty CSV file"),
        (f"{HEAD}\n", "no row can be used"),
        ("\n".join([HEAD, *ROWS]).replace(",", ";"), "its columns are separated by semicolons: save it with commas"),
        ("file_name,person_id,person_id\na.jpg,1,2", "column 'person_id' occurs twice: rename or remove one"),
        ("\n".join([HEAD, *ROWS, "a.jpg,ben,query"]), "row 5: a.jpg shows 'anna' and 'ben': give one person_id"),
        ("\n".join([HEAD, *ROWS, '"a.jpg'.ljust(60, "x")]), "not readable|row 5"),
    ],
)
def test_broken_csv(tmp_path, content, message):
    table(tmp_path, "csv", [1, 2, 3, 3])
    (tmp_path / "metadata.csv").write_text(content)
    with pytest.raises(UserError, match=f"metadata.csv: {message}"):
        load_reid_dataset("table", data_dir=tmp_path)


def test_bom_line_ends_quotes_and_unused_columns(tmp_path):
    root = table(tmp_path, "csv", [1, 2, 3, 3])
    lines = [f"{HEAD},cam", *(f"{row},1" for row in ROWS)]
    lines[1] = 'a.jpg,"smith, ""anna""",train,1'
    (root / "metadata.csv").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    notes = []
    assert read(root, notes=notes)[1] == ['smith, "anna"', "ben", "cleo", "cleo"]
    assert "columns that are not used: cam (known: file_name, person_id, split)" in notes[0]


def test_person_named_unknown_is_a_warning(tmp_path):
    notes = []
    assert read(table(tmp_path, "csv", ["5", "-1", "7", "7"]), notes=notes)[0] == [1, 0, 2, 2]
    assert "1 images are of the person '-1', which is one person here" in notes[0]


def people(root, *folders, images=2):
    for folder in folders:
        for number in range(images):
            path = os.path.join(os.fsencode(root), folder if isinstance(folder, bytes) else folder.encode(), b"%d.jpg")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            Picture.new("RGB", (4, 8)).save(os.fsdecode(path % number))
    return root


def numbers_of(dataset):
    rows = [(n, i) for split in dataset.values() for n, i in zip(split["person_name"], split["person_id"], strict=True)]
    return dict(rows)


def test_folders(tmp_path):
    many = people(tmp_path / "a", "1", "01", "001", "²", LONG + "123", "anna", "Anna")
    ordered = sorted(["1", "01", "001", "²", LONG + "123", "anna", "Anna"])
    assert numbers_of(load_reid_dataset("folders", data_dir=many)) == {name: n for n, name in enumerate(ordered)}
    with pytest.raises(UserError, match="'anna' and 'anna ' look the same"):
        load_reid_dataset("folders", data_dir=people(tmp_path / "b", "anna", "anna ", "ben", "cleo"))
    with pytest.raises(UserError, match=r"c/\\udcff': the name is not UTF-8 text: rename the folder"):
        load_reid_dataset("folders", data_dir=people(tmp_path / "c", b"\xff", "anna", "ben", "cleo"))


def test_folders_without_persons(tmp_path):
    root = people(tmp_path, "anna", "ben", "cleo", "dan", ".ipynb_checkpoints", "@eaDir", "__MACOSX/anna")
    (root / "anna/._0.jpg").write_bytes(b"x")
    (root / "anna/clip.mp4").write_bytes(b"x")
    (root / "notes.txt").write_text("x")
    os.mkfifo(root / "ben/pipe.png")
    notes = []
    assert len(numbers_of(load_reid_dataset("folders", data_dir=root, notes=notes))) == 4
    assert f"{root}: 3 files are not images and left out: anna/clip.mp4, ben/pipe.png and 1 more" in notes
    people(root, "anna/cam1")
    with pytest.raises(UserError, match="anna/cam1: 2 images in a sub-folder of a person's folder: move them up"):
        load_reid_dataset("folders", data_dir=root)
    splits = people(tmp_path / "splits", "train/a", "query/b", "gallery/b", "test/c")
    with pytest.raises(UserError, match="splits/test: next to the splits train, query, gallery: move it into one"):
        load_reid_dataset("folders", data_dir=splits)


def shards(root, features=None, **splits):
    """A folder of Parquet files with these columns, by split."""
    (root / "data").mkdir(parents=True)
    Picture.new("RGB", (4, 8)).save(root / "pixel.jpg")
    content = (root / "pixel.jpg").read_bytes()
    for name, columns in splits.items():
        count = len(next(iter(columns.values())))
        kinds = Features({"image": Image(), **{name: (features or {})[name] for name in columns}}) if features else None
        images = [{"bytes": content, "path": None}] * count
        split = Dataset.from_dict({"image": images, **columns}, features=kinds)
        split.to_parquet(root / f"data/{name}-00000-of-00001.parquet")
    return root


def test_mapped_ids_are_text_over_all_splits(tmp_path):
    root = shards(
        tmp_path / "a",
        train={"pid": ["1", "01", "1", "anna"]},
        query={"pid": ["100"], "cam": ["-1"]},
        gallery={"pid": ["100", "1E2"], "cam": ["door", ""]},
    )
    dataset = load_reid_dataset(root, columns={"person_id": "pid"})
    assert numbers_of(dataset) == {"01": 0, "1": 1, "100": 2, "1E2": 3, "anna": 4}
    assert "camera_name" not in dataset["train"].column_names
    for split in ("query", "gallery"):  # the train split has no cameras
        path = root / f"data/{split}-00000-of-00001.parquet"
        renamed = pa.parquet.read_table(path)
        names = ["camera_id" if name == "cam" else name for name in renamed.column_names]
        pa.parquet.write_table(pa.table(renamed.columns, names=names), path)
    dataset = load_reid_dataset(root, columns={"person_id": "pid"})
    assert dataset["train"]["camera_id"][:] == [-1] * 4 and dataset["query"]["camera_id"][:] == [-1]
    assert dataset["gallery"]["camera_id"][:] == [0, -1] and dataset["gallery"]["camera_name"][:] == ["door", None]
    labels = {"pid": ClassLabel(names=["anna", "01", "1"])}
    labelled = load_reid_dataset(shards(tmp_path / "b", labels, train={"pid": [2, 1, 0]}), columns={"person_id": "pid"})
    assert labelled["train"]["person_name"][:] == ["1", "01", "anna"] and labelled["train"]["person_id"][:] == [1, 0, 2]


def test_mapped_csv_keeps_digits(tmp_path):
    for name in FILES[:3]:
        Picture.new("RGB", (4, 8)).save(tmp_path / name)
    (tmp_path / "train.csv").write_text(f"image,pid,cam\na.jpg,01,-1\nb.jpg,1,NA\nc.jpg,{LONG},\n")
    train = load_reid_dataset(tmp_path, columns={"person_id": "pid", "camera_id": "cam"})["train"]
    assert train["person_name"][:] == ["01", "1", LONG] and train["camera_name"][:] == [None, "NA", None]
    (tmp_path / "train.csv").rename(tmp_path / "metadata.csv")
    content = (tmp_path / "metadata.csv").read_text().replace("image,", "file_name,")
    (tmp_path / "metadata.csv").write_text(content.replace(LONG, "2"))
    with pytest.raises(UserError, match="ids of a metadata.csv lose leading zeros here: read the folder with"):
        load_reid_dataset(tmp_path, columns={"person_id": "pid"})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pid": [[1], [2]]}, "split train: column person_id is List"),
        ({"pid": [True, False]}, "row 1: person_id True is neither text nor a whole number"),
        ({"pid": [1.5, 2]}, "row 1: person_id 1.5 is neither"),
        ({"pid": ["a", None]}, "row 2: has no person_id"),
        ({"pid": ["a", "b"], "caption": [1, 2]}, "column caption is Value"),
        ({"pid": ["a", "a "]}, "column person_id: the names 'a' and 'a ' look the same"),
        ({"pid": ["a", "b"], "file_name": [1, 2]}, "column file_name: not all rows have a text"),
    ],
)
def test_wrong_mapped_columns(tmp_path, columns, message):
    with pytest.raises(UserError, match=message) as caught:
        load_reid_dataset(shards(tmp_path / "a", train=columns), columns={"person_id": "pid"})
    assert "\n" not in str(caught.value)


def test_mapped_images(tmp_path):
    Picture.new("RGB", (4, 8)).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()

    def load(images, **options):
        (tmp_path / "data").mkdir(exist_ok=True)
        split = Dataset.from_dict({"image": images, "person_id": list(range(len(images)))})
        split.to_parquet(tmp_path / "data/train-00000-of-00001.parquet")
        return load_reid_dataset(tmp_path, columns={})["train"]

    assert [image.size for image in load([content, content])["image"]] == [(4, 8)] * 2
    assert [image.size for image in load(["a.png", str(tmp_path / "a.png")])["image"]] == [(4, 8)] * 2
    for images, message in (
        (["../a.png"], "path '../a.png' is not inside the data folder"),
        (["a.png", None], "row 2: has no image"),
        ([1, 2], "the image column is Value"),
    ):
        with pytest.raises(UserError, match=message):
            load(images)


def test_names_are_kept(tmp_path):
    dataset = load_reid_dataset(
        "table", data_dir=table(tmp_path / "t", "csv", list("wxyy"), ["door", "-1", "yard", "2"])
    )
    write_prepared(tmp_path / "out", dataset, name="t", metadata={})
    back = read_prepared(tmp_path / "out")
    for name, split in dataset.items():
        assert person_names(back[name]) == person_names(split) and camera_names(back[name]) == camera_names(split)
    assert camera_names(back["train"]) == ["door", ""] and describe(back["query"])["cameras"] == {"yard": 1}
    assert "`person_name`, `camera_name`" in (tmp_path / "out/README.md").read_text()
    unnamed = DatasetDict(train=dataset["train"].remove_columns(["person_name", "camera_name"]))
    whole = combine({"a": dataset, "b": unnamed}, all_splits=True)
    assert person_names(whole) == ["w", "x", "y", "y", "3", "4"] and camera_names(whole)[:4] == [
        "door",
        "",
        "yard",
        "2",
    ]
    # Two sets may have cameras of one name: they stay two.
    both = combine({"a": dataset, "b": DatasetDict(train=dataset["train"])})
    assert camera_names(both) == ["door", "", "door", ""] and describe(both)["cameras"] == {
        "door (0)": 1,
        "door (1)": 1,
    }
    two = dataset["gallery"].remove_columns("person_name").add_column("person_name", ["z"])
    DatasetDict(query=dataset["query"], gallery=two).save_to_disk(tmp_path / "saved")
    load_reid_dataset(tmp_path / "saved")
    mixed = DatasetDict(train=dataset["train"].remove_columns("person_id").add_column("person_id", [1, 1]))
    mixed.save_to_disk(tmp_path / "mixed")
    with pytest.raises(UserError, match="person_id 1 has the names 'w' and 'x'"):
        load_reid_dataset(tmp_path / "mixed")


def test_saved_texts_and_booleans_are_not_ids(tmp_path):
    dataset = load_reid_dataset("table", data_dir=table(tmp_path / "t", "csv", list("wxyy")))
    for number, (values, kind) in enumerate(
        ((["1", "01"], "string"), ([True, False], "bool"), ([1.0, 2.0], "float32"))
    ):
        split = dataset["train"].remove_columns("person_id").add_column("person_id", values, feature=Value(kind))
        DatasetDict(train=split).save_to_disk(tmp_path / f"s{number}")
        with pytest.raises(UserError, match="column 'person_id' of split 'train' is Value.*: save it as Value"):
            load_reid_dataset(tmp_path / f"s{number}")
