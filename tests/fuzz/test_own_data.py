"""Fuzz: own data. Names of people and cameras stay apart, every image is read once or reported."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from fuzz_harness import Area, make_tests
from hostile import (
    LITTER_FILES,
    LITTER_FOLDERS,
    PIXEL,
    byte_changes,
    changed_bytes,
    file_names,
    ids,
    json_values,
    texts,
    words,
)
from hypothesis import strategies as st

from modeling_mllmreid.data.contract import SPLITS
from modeling_mllmreid.data.images import is_hidden
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.data.prepare import write_prepared
from modeling_mllmreid.data.readers.own_data import read_table

# ---- a folder for each person --------------------------------------------------------------------------------------

# Mostly what can be read: a hostile tree is one in a few ways, not in all.
people = st.dictionaries(
    file_names.filter(lambda name: name not in SPLITS), st.sampled_from([1, 2, 2, 2, 3]), min_size=5, max_size=7
)
person_folders = st.fixed_dictionaries(
    {
        "people": people | people | people | st.dictionaries(st.just("a") | st.just("b"), st.integers(0, 2)),
        "split": st.sampled_from(["", "", "train"]),
        "litter": st.lists(st.sampled_from(LITTER_FILES + LITTER_FOLDERS), max_size=3),
        "on_error": st.sampled_from(["stop", "skip"]),
        "share": st.sampled_from([0.5, 0.5, 0.5, 0.3, 0.4, 0.0]),
    }
)


def build_folders(value: dict[str, Any], root: Path) -> None:
    top = root / "in" / value["split"]
    top.mkdir(parents=True)
    for person, count in value["people"].items():
        folder = top / person
        folder.mkdir()
        for number in range(count):
            (folder / f"{number}.jpg").write_bytes(PIXEL)
    for number, name in enumerate(value["litter"]):
        folder = [top, *sorted(top.iterdir(), key=str)][number % (1 + len(value["people"]))] if number else top
        if folder.is_dir() and not (folder / name).exists():
            if name in LITTER_FILES:
                (folder / name).write_bytes(b"x")
            else:
                (folder / name).mkdir()
                (folder / name / "1.jpg").write_bytes(PIXEL)


def is_utf8(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def read_person_folders(value: dict[str, Any], root: Path) -> None:
    options = {"on_error": value["on_error"], "skipped_file": root / "skipped.txt"}
    if not value["split"]:
        options["test_share"] = value["share"]
    dataset = load_reid_dataset("folders", data_dir=root / "in", **options)
    visible = {name: count for name, count in value["people"].items() if count and not is_hidden(name)}
    if value["on_error"] == "skip":
        # A name that is no UTF-8 is left out, and listed.
        odd = [name for name in visible if not is_utf8(name)]
        assert not odd or (root / "skipped.txt").read_text().count("UTF-8") >= len(odd), "left out without a word"
        visible = {name: count for name, count in visible.items() if name not in odd}
    assert sum(map(len, dataset.values())) == sum(visible.values()), "images were lost"
    people = {person for part in dataset.values() for person in part["person_id"][:]}
    assert len(people) == len(visible), f"{len(visible)} folders are {len(people)} people"
    pairs = {
        (person, name.split("/")[-2])
        for part in dataset.values()
        for person, name in zip(part["person_id"][:], part["file_name"][:], strict=True)
    }
    assert len(pairs) == len(visible), "a person has two names, or a name two persons"


# ---- a table -------------------------------------------------------------------------------------------------------

cells = st.one_of(*[ids] * 9, texts)
cameras = st.one_of(st.just(""), ids.filter(lambda name: name != "-1"), st.sampled_from(["1", "2", "cam1", "01"]))
rows = st.fixed_dictionaries(
    {"person_id": cells, "camera_id": cameras, "caption": words | st.sampled_from(["", "a man .", "a, b"])}
)


def paired(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, every two of one person."""
    return [{**row, "person_id": rows[number // 2]["person_id"]} for number, row in enumerate(rows)]


tables = st.fixed_dictionaries(
    {
        "rows": st.lists(rows, min_size=1, max_size=8),
        "kind": st.sampled_from(
            ["csv", "jsonl", "parquet", "csv of numbers", "jsonl of numbers", "parquet of numbers"]
        ),
        "columns": st.sampled_from([["person_id", "camera_id", "caption"], ["person_id"], ["person_id", "camera_id"]]),
        "odd": st.one_of(
            st.just(None),
            st.just(None),
            st.just(None),
            st.tuples(st.just("bytes"), byte_changes),
            st.tuples(st.just("cell"), st.tuples(st.integers(0, 7), json_values)),
            st.tuples(st.just("encoding"), st.sampled_from(["utf-16", "latin-1", "utf-8-sig"])),
            st.tuples(st.just("file"), texts),
        ),
        "split": st.one_of(
            st.just(None), st.just(None), st.lists(st.sampled_from([*SPLITS, "x", ""]), min_size=8, max_size=8)
        ),
    }
)


# Tables that can be split: three people and more with two images each.
whole_tables = st.fixed_dictionaries(
    {
        "rows": st.lists(rows, min_size=6, max_size=8).map(paired),
        "kind": st.sampled_from(["csv", "jsonl", "parquet", "csv of numbers"]),
        "columns": st.sampled_from([["person_id", "caption"], ["person_id"]]),
        "odd": st.none(),
        "split": st.none(),
    }
)


def table_rows(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The table's rows; of numbers: with whole numbers where the texts are digits."""
    made = []
    for number, row in enumerate(value["rows"]):
        row = {"file_name": f"{number}.jpg", **{column: row[column] for column in value["columns"]}}
        if value["split"] is not None:
            row["split"] = value["split"][number]
        if value["kind"].endswith("numbers"):
            for column in {"person_id", "camera_id"} & row.keys():
                row[column] = int.from_bytes(row[column].encode("utf-8", "surrogatepass")[:2]) % 50
        made.append(row)
    kind, how = value["odd"] or ("", None)
    if kind == "cell":
        made[how[0] % len(made)]["person_id"] = how[1]
    if kind == "file":
        made[0]["file_name"] = how
    return made


def build_table(value: dict[str, Any], root: Path) -> None:
    folder = root / "in"
    folder.mkdir()
    for number in range(len(value["rows"])):
        (folder / f"{number}.jpg").write_bytes(PIXEL)
    made = table_rows(value)
    suffix = value["kind"].split()[0]
    kind, how = value["odd"] or ("", None)
    encoding = how if kind == "encoding" else "utf-8"
    if suffix == "csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(made[0]), quoting=csv.QUOTE_MINIMAL)
        writer.writeheader()
        writer.writerows(made)
        content = text.getvalue().encode(encoding, "surrogatepass" if "8" in encoding else "replace")
    elif suffix == "jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made).encode(encoding, "replace")
    else:
        out = io.BytesIO()
        columns = {name: [row[name] for row in made] for name in made[0]}
        arrays = {}
        for name, values in columns.items():
            try:
                arrays[name] = pa.array(values)
            except (pa.ArrowException, UnicodeError, OverflowError, TypeError):
                arrays[name] = pa.array([ascii(item) for item in values])
        try:
            pyarrow.parquet.write_table(pa.table(arrays), out)
        except pa.ArrowException:  # Parquet has no column of empty structs
            arrays = {name: pa.array([ascii(item) for item in values]) for name, values in columns.items()}
            pyarrow.parquet.write_table(pa.table(arrays), out)
        content = out.getvalue()
    (folder / f"metadata.{suffix}").write_bytes(changed_bytes(content, how) if kind == "bytes" else content)


def read_own_table(value: dict[str, Any], root: Path) -> None:
    dataset = read_table(root / "in")
    if value["odd"] is not None:
        return
    made = table_rows(value)
    names = [name for part in dataset.values() for name in part["file_name"][:]]
    assert sorted(names) == sorted(row["file_name"] for row in made), "rows were lost"
    found = {
        name: (person, camera)
        for part in dataset.values()
        for name, person, camera in zip(part["file_name"][:], part["person_id"][:], part["camera_id"][:], strict=True)
    }
    for place, column in enumerate(("person_id", "camera_id")):
        if column in made[0]:
            pairs = {(found[row["file_name"]][place], str(row[column])) for row in made if str(row[column])}
            texts_of = {text for _, text in pairs}
            numbers = {number for number, _ in pairs}
            assert len(pairs) == len(texts_of) == len(numbers), f"{column}: {sorted(pairs)}"
    blank = [found[row["file_name"]][1] for row in made if row.get("camera_id") == ""]
    assert set(blank) <= {-1}, "an empty camera is a camera"


# ---- prepared ------------------------------------------------------------------------------------------------------


def prepare_and_read(value: dict[str, Any], root: Path) -> None:
    """What prepare wrote is what was read, by names."""
    dataset = load_reid_dataset("table", data_dir=root / "in", splits_file=root / "out/splits.json", test_share=0.4)
    write_prepared(root / "out/people", dataset, name="table", metadata={})
    again = load_reid_dataset(str(root / "out/people"))
    assert set(again) == set(dataset), "other parts"
    for name, part in dataset.items():
        for column in ("person_id", "camera_id", "caption", "file_name"):
            assert again[name][column][:] == part[column][:], f"{name}: {column} is another"
        assert again[name]["image"][0].size == (2, 2)


test_few_examples, test_many_examples = make_tests(
    Area("folders", 0.09, person_folders, build_folders, read_person_folders, writes=("in/splits.json", "skipped.txt")),
    Area("tables", 0.09, tables, build_table, read_own_table),
    Area("prepare", 0.02, whole_tables, build_table, prepare_and_read, writes=("out",)),
)
