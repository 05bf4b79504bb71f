"""Fuzz: data sets that were saved, prepared or published by others. Each file is read whole, or none is."""

import io
import json
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from fuzz_harness import Area, make_tests
from hostile import PIXEL, byte_changes, changed_bytes, changed_file, ids, json_files, json_values
from hypothesis import strategies as st
from trees import SMALL, write_tree

from modeling_mllmreid.data.contract import FEATURES, SPLITS, image_sources
from modeling_mllmreid.data.images import open_image
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.data.prepare import write_prepared

# ---- folders of save_to_disk and prepare ---------------------------------------------------------------------------

where = st.integers(0, 30)
changes = st.one_of(
    st.tuples(st.just("bytes"), where, byte_changes),
    st.tuples(st.just("json"), where, json_files),
    st.tuples(st.just("remove"), where, st.none()),
    st.tuples(st.just("folder"), where, st.none()),
    st.tuples(st.just("pipe"), where, st.none()),
    st.tuples(st.just("again"), where, st.sampled_from([*SPLITS, "test", "x"])),
    st.tuples(st.just("litter"), where, st.sampled_from([".DS_Store", "._a.parquet", "notes.txt", "a.csv"])),
)
saved = st.tuples(st.sampled_from(["saved", "prepared"]), st.lists(changes, max_size=2))


@cache
def original(kind: str) -> Path:
    """A small data set in the form that `kind` names, made once."""
    root = Path(tempfile.mkdtemp(prefix=f"fuzz-{kind}-"))
    dataset = load_reid_dataset("market1501", data_dir=write_tree(root, "market1501", SMALL["market1501"]))
    if kind == "saved":
        dataset.save_to_disk(root / "people")
    else:
        write_prepared(root / "people", dataset, name="market1501", metadata={})
    return root / "people"


@cache
def sizes(kind: str) -> dict[str, int]:
    return {name: len(part) for name, part in load_reid_dataset(str(original(kind))).items()}


def build_saved(value: Any, root: Path) -> None:
    kind, of = value
    shutil.copytree(original(kind), root / "people")
    for change, place, how in of:
        files = sorted(path for path in (root / "people").rglob("*") if path.is_file())
        if not files:
            return
        path = files[place % len(files)]
        content = path.read_bytes()
        if change == "bytes":
            path.write_bytes(changed_bytes(content, how))
        elif change == "json":
            path.write_bytes(changed_file(content, how))
        elif change == "again":
            path.with_name(f"{how}-00000-of-00001.parquet").write_bytes(content)
        elif change == "litter":
            path.with_name(how).write_bytes(b"x")
        else:
            path.unlink()
            if change == "folder":
                path.mkdir()
            elif change == "pipe":
                os.mkfifo(path)


def read_saved(value: Any, root: Path) -> None:
    kind, of = value
    dataset = load_reid_dataset(str(root / "people"))
    for split, part in dataset.items():
        assert split in SPLITS and set(FEATURES) <= set(part.column_names), f"{split}: other columns"
        for column in ("person_id", "camera_id", "caption", "file_name"):
            part[column][:]
        assert len(image_sources(part)) == len(part)
    if not of:
        assert {name: len(part) for name, part in dataset.items()} == sizes(kind), "other parts"
        open_image(image_sources(dataset["query"])[0])


# ---- any columns ---------------------------------------------------------------------------------------------------

cells = st.one_of(*[ids] * 5, st.integers(-2, 20), st.none())
mapped = st.fixed_dictionaries(
    {
        "rows": st.lists(st.fixed_dictionaries({"pid": cells, "cam": cells}), min_size=1, max_size=8),
        "odd": st.none() | st.none() | json_values,
        "columns": st.sampled_from(
            [{"person_id": "pid", "camera_id": "cam"}, {"person_id": "pid"}, {"person_id": "absent"}]
        ),
        "split": st.sampled_from(["train", "train", "test", "validation", "x"]),
    }
)


def array(values: list[Any]) -> pa.Array:
    """A column of the values' own type, or of their texts where they have none in common."""
    try:
        return pa.array(values)
    except (pa.ArrowException, UnicodeError, OverflowError, TypeError):
        return pa.array([None if value is None else str(value).encode("utf-8", "replace").decode() for value in values])


def table_of(value: dict[str, Any]) -> dict[str, pa.Array]:
    columns: dict[str, list[Any]] = {name: [row[name] for row in value["rows"]] for name in ("pid", "cam")}
    if value["odd"] is not None:
        columns["pid"][0] = value["odd"]
    images = [{"bytes": PIXEL, "path": f"{number}.jpg"} for number in range(len(value["rows"]))]
    return {"image": pa.array(images), **{name: array(values) for name, values in columns.items()}}


def build_mapped(value: dict[str, Any], root: Path) -> None:
    (root / "people").mkdir()
    out = io.BytesIO()
    try:
        pyarrow.parquet.write_table(pa.table(table_of(value)), out)
    except pa.ArrowException:  # Parquet has no column of empty structs
        out.write(b"PAR1")
    (root / f"people/{value['split']}-00000-of-00001.parquet").write_bytes(out.getvalue())


def read_mapped(value: dict[str, Any], root: Path) -> None:
    """Each name is one person: as many people as names."""
    dataset = load_reid_dataset(str(root / "people"), columns=value["columns"])
    names = [str(item) for item in table_of(value)["pid"].to_pylist()]
    numbers = {number for part in dataset.values() for number in part["person_id"][:]}
    assert sum(map(len, dataset.values())) == len(names), "rows were lost"
    if value["odd"] is None:
        assert len(numbers) == len(set(names)), f"{len(set(names))} names are {len(numbers)} people"
    json.dumps(sorted(numbers))


test_few_examples, test_many_examples = make_tests(
    Area("saved data", 0.03, saved, build_saved, read_saved),
    Area("columns of others", 0.02, mapped, build_mapped, read_mapped),
)
