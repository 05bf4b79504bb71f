"""Own data without code: a folder for each person, or images with a table that says who is on them.

    data_dir/ANNA/1.jpg, data_dir/BEN/1.jpg                     `folders`: one part, split by `data.made_splits`
    data_dir/{train,val,query,gallery}/ANNA/1.jpg               `folders`: parts as they are
    data_dir/metadata.csv | .jsonl | .parquet                   `table`: a row an image, with the columns
        file_name, person_id, and where known camera_id, caption, split, track_id, clothes_id
Persons and cameras may be numbers or names; names are numbered in sorted order, the column `person_name` keeps them.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet
from datasets import Dataset, DatasetDict, Value

from ...errors import UserError
from ..columns import SPLITS, UNKNOWN_CAMERA, Row, make_split, number_names
from ..images import list_images, safe_join
from ..problems import Problems
from .caption_sets import MAX_CAPTION

WHOLE = "all"
TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
REQUIRED, OPTIONAL = ("file_name", "person_id"), ("camera_id", "caption", "split", "track_id", "clothes_id")


def read_folders(data_dir: str | os.PathLike[str], *, problems: Problems | None = None) -> DatasetDict:
    """A folder for each person, cameras unknown (-1), so that no same-camera filter applies.

    With sub-folders named like splits these are the parts, otherwise there is the one part "all". A folder without
    images, and images beside the folders, are problems. Raises UserError where nobody is found.
    """
    root, problems = Path(data_dir), problems or Problems()
    if not root.is_dir():
        raise UserError(f"{root}: no such folder: give data_dir the folder that holds a folder for each person")
    parts = {split: split for split in SPLITS if (root / split).is_dir()} or {WHOLE: "."}
    found: dict[str, list[tuple[str, str]]] = {}
    for split, part in parts.items():
        folders = sorted(entry.name for entry in os.scandir(root / part) if entry.is_dir())
        found[split] = []
        for name in list_images(root / part).names:
            problems.report(UserError(f"{root / part / name}: beside the persons' folders: move it into one of them"))
        for person in folders:
            images = list_images(root / part / person).names
            if not images:
                problems.report(UserError(f"{root / part / person}: no image in it: add some or remove the folder"))
            found[split] += [(str(PurePosixPath(part, person, name)), person) for name in images]
        if not found[split]:
            raise UserError(f"{root / part}: no person's folder with images: give a folder like ANNA/1.jpg")
    numbers = number_names([person for rows in found.values() for _, person in rows])
    parts_of_rows = {
        split: [(Row(file_name, numbers[person]), {"person_name": person}) for file_name, person in rows]
        for split, rows in found.items()
    }
    return _dataset(parts_of_rows, root, "folders")


def read_table(data_dir: str | os.PathLike[str], *, problems: Problems | None = None) -> DatasetDict:
    """Images with a metadata table beside them. Rows keep the table's order.

    Without the column split there is the one part "all"; an image may have several rows only with other captions, which
    are joined. Raises UserError for a table that is missing, unreadable, or has a wrong column, and naming the row.
    """
    root, problems = Path(data_dir), problems or Problems()
    present = [name for name in TABLES if (root / name).is_file()]
    if len(present) != 1:
        found = " and ".join(present) or "none"
        raise UserError(f"{root}: {found} of {', '.join(TABLES)}: give data_dir a folder with one of them")
    table = root / present[0]
    columns = _columns(table)
    count = len(columns["file_name"])
    numbers = number_names(columns["person_id"])
    cameras = number_names([camera for camera in columns.get("camera_id", []) if camera not in (None, "", -1)])
    rows: dict[str, dict[str, tuple[Row, dict[str, Any]]]] = {}
    for index in range(count):
        values = {name: column[index] for name, column in columns.items()}
        try:
            split, row, extra = _row(values, root, numbers, cameras)
            part = rows.setdefault(split, {})
            if row.file_name in part:
                first, _ = part[row.file_name]
                if first._replace(captions=()) != row._replace(captions=()) or set(row.captions) <= set(first.captions):
                    raise UserError(f"{row.file_name} has a row already: keep one, or give it another caption")
                row = row._replace(captions=first.captions + row.captions)
            part[row.file_name] = (row, extra)
        except UserError as problem:
            problems.report(UserError(f"{table}: row {index + 1}: {problem}"))
    if not rows:
        raise UserError(f"{table}: no row can be used: give rows with {', '.join(REQUIRED)}")
    return _dataset({split: list(part.values()) for split, part in rows.items()}, root, "table")


def _columns(table: Path) -> dict[str, list[Any]]:
    """The known columns of a table, as lists."""
    readers = {".csv": pyarrow.csv.read_csv, ".jsonl": pyarrow.json.read_json, ".parquet": pyarrow.parquet.read_table}
    try:
        content = readers[table.suffix](table)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{table}: not readable ({' '.join(str(error).split())[:200]}): mend the file") from error
    missing = [name for name in REQUIRED if name not in content.column_names]
    if missing:
        raise UserError(
            f"{table}: no column {', '.join(missing)}, but {', '.join(content.column_names)}: rename or add it"
        )
    known = [name for name in (*REQUIRED, *OPTIONAL) if name in content.column_names]
    return {name: content[name].to_pylist() for name in known}


def _row(
    values: Mapping[str, Any], root: Path, numbers: Mapping[Any, int], cameras: Mapping[Any, int]
) -> tuple[str, Row, dict[str, Any]]:
    """(split, row, further columns) of one line of the table."""
    name, person = values["file_name"], values["person_id"]
    if not isinstance(name, str) or person in (None, ""):
        raise UserError(f"file_name {name!r}, person_id {person!r}: give both")
    if not safe_join(root, name).is_file():
        raise UserError(f"there is no image {root / name}: restore it or remove the row")
    split = values.get("split", WHOLE)
    if "split" in values and split not in SPLITS:
        raise UserError(f"split {split!r} is unknown: give {', '.join(SPLITS)}")
    captions = values.get("caption") or []
    captions = [captions] if isinstance(captions, str) else captions
    if not all(isinstance(caption, str) and 0 < len(caption.strip()) < MAX_CAPTION for caption in captions):
        raise UserError(f"caption: not a text of 1 to {MAX_CAPTION - 1:,} characters: mend or remove it")
    camera = cameras.get(values.get("camera_id"), UNKNOWN_CAMERA)
    extra: dict[str, Any] = {"person_name": str(person)}
    for column in ("track_id", "clothes_id"):
        if column in values:
            if not isinstance(values[column], int | None):
                raise UserError(f"{column} {values[column]!r} is no whole number: give one, or nothing where unknown")
            extra[column] = -1 if values[column] is None else values[column]
    return split, Row(PurePosixPath(name).as_posix(), numbers[person], camera, tuple(captions)), extra


def _dataset(parts: Mapping[str, Sequence[tuple[Row, Mapping[str, Any]]]], root: Path, source: str) -> DatasetDict:
    """Splits of the data contract with their further columns."""
    splits: dict[str, Dataset] = {}
    for split, rows in parts.items():
        made = make_split([row for row, _ in rows], root=root, source=source)
        for column in rows[0][1]:
            kind = Value("string" if column == "person_name" else "int64")
            made = made.add_column(column, [extra[column] for _, extra in rows], feature=kind)
        splits[split] = made
    return DatasetDict(splits)
