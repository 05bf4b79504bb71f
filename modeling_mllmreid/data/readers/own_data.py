"""Your own data without code: a folder for each person, or images with a metadata table.

    data_dir/ANNA/1.jpg, data_dir/BEN/1.jpg                     `folders`: one part, split by `data.made_splits`
    data_dir/{train,val,query,gallery}/ANNA/1.jpg               `folders`: parts as they are
    data_dir/metadata.csv | .jsonl | .parquet                   `table`: a row an image, with the columns
        file_name, person_id, and where known camera_id, caption, split, track_id, clothes_id
Ids may be numbers or names, see `columns.number_names`; the columns `person_name` and `camera_name` keep them as they
are written. Camera, track or clothes -1 are unknown, and so is an empty cell.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from datasets import Dataset, DatasetDict

from ...utils.errors import UserError
from ..contract import (
    OPTIONAL_FEATURES,
    SPLITS,
    UNKNOWN_CAMERA,
    Problems,
    Sample,
    id_text,
    is_utf8,
    join_names,
    known_id_text,
    make_split,
    number_names,
    refuse_rounded,
)
from ..images import is_hidden, list_images, safe_join
from .caption_sets import MAX_CAPTION

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read_metadata(table: Path, known: Sequence[str], required: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """(the known columns that the table has, by name, as lists; the names of its other columns).

    CSV: all cells are text, so that no id becomes a number. JSON lines: values as they are, whole numbers of any size.
    Raises UserError for a file that cannot be read, a column that is missing or there twice, and naming the line.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_json_lines, ".parquet": _read_parquet}
    try:
        names, columns = readers[table.suffix](table, known)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{table}: not readable ({' '.join(str(error).split())[:200]}): fix the file") from error
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{table}: column {twice[0]!r} is there twice: rename or remove one")
    missing = [name for name in required if name not in names]
    if missing:
        found = ", ".join(names) or "none"
        raise UserError(f"{table}: no column {', '.join(missing)}, but {found:.300}: rename or add it")
    return columns, [name for name in names if name not in known]


def _read_csv(table: Path, known: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    # Types are asked for by name, and a file of wrong bytes has no names to ask for: texts are checked afterwards.
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(known, pa.string()), strings_can_be_null=False)
    content = pa.csv.read_csv(
        table, parse_options=pa.csv.ParseOptions(newlines_in_values=True), convert_options=convert
    )
    names = content.column_names
    for separator, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(names) == 1 and separator in names[0]:
            raise UserError(f"{table}: its columns are separated by {called}: save it with commas")
    return names, {name: content[name].to_pylist() for name in known if names.count(name) == 1}


def _read_json_lines(table: Path, known: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    names: dict[str, None] = {}
    rows: list[dict[str, Any]] = []
    # Not splitlines: a caption may hold the line separators of Unicode.
    for number, line in enumerate(table.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_no_constant, object_pairs_hook=_object)
            if not isinstance(row, dict):
                raise ValueError("no object: write {...}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{table}: line {number}: not a JSON object ({error}): fix the line") from None
        names |= dict.fromkeys(row)
        rows.append({name: row.get(name) for name in known})
    return list(names), {name: [row[name] for row in rows] for name in known if name in names}


def _no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object; of a field that is there twice one value would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"field {twice!r} is there twice")
    return content


def _read_parquet(table: Path, known: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    # Not read_table, which makes columns of folders named like key=value.
    with pa.parquet.ParquetFile(table) as file:
        names = file.schema_arrow.names
        once = [name for name in known if names.count(name) == 1]
        for name in once:
            kind = file.schema_arrow.field(name).type
            plain = kind.value_type if pa.types.is_dictionary(kind) else kind
            if name != "caption" and pa.types.is_nested(plain):
                raise UserError(f"{table}: column {name} is {kind}: save it as one text or number a row")
        content = file.read(columns=once)
        for name in once:
            refuse_rounded(content[name], f"{table}: column {name}")
        return names, {name: content[name].to_pylist() for name in once}


UNSPLIT = "all"
LONGEST_PATH = 300
UNKNOWN_PERSON = "-1"
# Files of ours that may lie in the folder.
OURS = ("splits.json", "skipped.txt")
REQUIRED, OPTIONAL = ("file_name", "person_id"), ("camera_id", "caption", "split", "track_id", "clothes_id")
# How the cells of each column of ids become names.
IDS: Mapping[str, Callable[[Any], str | None]] = {
    "person_id": id_text,
    "camera_id": known_id_text,
    "track_id": known_id_text,
    "clothes_id": known_id_text,
}

Found = tuple[Sample, Mapping[str, Any]]  # a row, and its values of the further columns


def read_folders(data_dir: str | os.PathLike[str], *, problems: Problems | None = None) -> DatasetDict:
    """A folder for each person, cameras unknown (-1), so that no same-camera filter applies.

    With sub-folders named like splits these are the parts, otherwise there is the one part "all". Hidden files and
    folders are no people. A person without images, images outside the persons' folders or too deep in them, and names
    that are not UTF-8 are problems; other files are left out with a warning. Raises UserError where nobody is found.
    """
    root, problems = Path(data_dir), problems or Problems()
    if not os.path.isdir(root):
        raise UserError(f"{_shown(root)}: no such folder: give data_dir the folder that holds a folder for each person")
    parts = {split: split for split in SPLITS if os.path.isdir(root / split)} or {UNSPLIT: "."}
    if UNSPLIT not in parts:
        for name in _folders(root):
            if name not in parts:
                problems.report(
                    UserError(
                        f"{_shown(root / name)}: next to the parts {', '.join(parts)}: move it into one of them, or "
                        f"give it the name of a part ({', '.join(SPLITS)})"
                    )
                )
        _outside(root, "the folders of the parts", problems)
    found: dict[str, list[tuple[str, str]]] = {}
    left_out: list[str] = []
    for split, part in parts.items():
        found[split] = []
        left_out += _outside(root / part, "the persons' folders", problems)
        for person in _folders(root / part):
            names, others = _images_of(root / part / person, problems)
            found[split] += [(str(PurePosixPath(part, person, name)), person) for name in names]
            left_out += [str(PurePosixPath(part, person, name)) for name in others]
        if not found[split]:
            raise UserError(f"{root / part}: no person's folder with images: give a folder like ANNA/1.jpg")
    if left_out:
        problems.warn(f"{root}: {len(left_out):,} files are no images and left out: {join_names(left_out)}")
    everybody = [person for rows in found.values() for _, person in rows]
    _warn_of_unknown(everybody, root, problems)
    numbers = _numbers(everybody, root)
    parts_of_rows = {
        split: [(Sample(file_name, numbers[person]), {"person_name": person}) for file_name, person in rows]
        for split, rows in found.items()
    }
    return _dataset(parts_of_rows, root, "folders")


def _folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, without hidden ones, sorted."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise UserError(f"{_shown(folder)}: cannot be listed ({error.strerror}): give a readable folder") from error


def _outside(folder: Path, where: str, problems: Problems) -> list[str]:
    """The files in a folder that has none of its own; its images are problems."""
    images = list_images(folder)
    for name in images.names:
        problems.report(UserError(f"{_shown(folder / name)}: beside {where}: move it into one of them"))
    return [name for name in images.left_out if (folder / name).is_file() and name not in OURS]


def _images_of(folder: Path, problems: Problems) -> tuple[list[str], list[str]]:
    """(images, other files) of a person's folder. A folder that cannot be used is a problem and has no images."""
    if not is_utf8(folder.name):
        problems.report(UserError(f"{_shown(folder)}: the name is not UTF-8 text: rename the folder"))
        return [], []
    images = list_images(folder)
    names = [name for name in images.names if is_utf8(name)]
    for name in images.names:
        if not is_utf8(name):
            problems.report(UserError(f"{_shown(folder / name)}: the name is not UTF-8 text: rename the file"))
    for inner in _folders(folder):
        deep = list_images(folder / inner).names
        if deep:
            problems.report(
                UserError(
                    f"{_shown(folder / inner)}: {len(deep):,} images in a folder of a person's folder: move them up, "
                    "or write a metadata table, which can name cameras"
                )
            )
    if not images.names:
        problems.report(UserError(f"{folder}: no image in it: add some or remove the folder"))
    return names, images.left_out


def _shown(path: Path) -> str:
    """A path for a message, in one line and with bytes that are no text escaped."""
    text = str(path) if str(path).isprintable() else repr(str(path))
    return text if len(text) <= LONGEST_PATH else f"{text[:LONGEST_PATH]}..."


def _warn_of_unknown(people: Sequence[object], where: Path, problems: Problems) -> None:
    """Warns where people may be marked as unknown, as Market-1501 does, whose readers drop them."""
    count = people.count(UNKNOWN_PERSON)
    if count:
        problems.warn(
            f"{where}: {count:,} images are of the person {UNKNOWN_PERSON!r}, who is one person here: where that says "
            "unknown, leave them out, or use them in the gallery alone"
        )


def _numbers(names: Sequence[str | None], where: Path) -> dict[str, int]:
    try:
        return number_names(names)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read_table(data_dir: str | os.PathLike[str], *, problems: Problems | None = None) -> DatasetDict:
    """Images with a metadata table. Rows keep the table's order.

    Without the column split there is the one part "all"; an image may have several rows only with other captions, which
    are joined, or as query and gallery. Columns that are not known are left out with a warning.
    Raises UserError for a table that is missing, unreadable, or has a wrong column, and naming the row.
    """
    root, problems = Path(data_dir), problems or Problems()
    present = [name for name in TABLES if os.path.isfile(root / name)]
    if len(present) != 1:
        found = " and ".join(present) or "none"
        raise UserError(f"{_shown(root)}: {found} of {', '.join(TABLES)}: give data_dir a folder with one of them")
    table = root / present[0]
    columns, unknown = read_metadata(table, (*REQUIRED, *OPTIONAL), REQUIRED)
    if unknown:
        problems.warn(f"{table}: columns that are not used: {join_names(unknown)} (known: {', '.join(columns)})")
    ids = {
        column: [_tried(IDS[column], column, cell) for cell in columns[column]] for column in IDS if column in columns
    }
    numbers = {
        column: _numbers([text for text in of_column if isinstance(text, str)], table)
        for column, of_column in ids.items()
    }
    _warn_of_unknown(ids["person_id"], table, problems)
    rows: dict[str, dict[str, Found]] = {}
    person_of: dict[str, str] = {}
    for index in range(len(columns["file_name"])):
        values = {name: column[index] for name, column in columns.items()}
        texts = {name: of_column[index] for name, of_column in ids.items()}
        try:
            split, row, further = _row(values, texts, root, numbers)
            if person_of.setdefault(row.file_name, further["person_name"]) != further["person_name"]:
                both = f"{person_of[row.file_name]!r} and {further['person_name']!r}"
                raise UserError(f"{row.file_name} shows {both}: give one person_id")
            part = rows.setdefault(split, {})
            if row.file_name in part:
                first, of_first = part[row.file_name]
                same = first._replace(captions=()) == row._replace(captions=()) and of_first == further
                if not same or set(row.captions) <= set(first.captions):
                    raise UserError(f"{row.file_name} has a row already: keep one, or give it another caption")
                row = row._replace(captions=first.captions + row.captions)
            part[row.file_name] = (row, further)
        except UserError as problem:
            problems.report(UserError(f"{table}: row {index + 1}: {problem}"))
    rows = {split: part for split, part in rows.items() if part}
    if not rows:
        raise UserError(f"{table}: no row can be used: give rows with {', '.join(REQUIRED)}")
    return _dataset({split: list(part.values()) for split, part in rows.items()}, root, "table")


def _tried(name_of: Callable[[Any], str | None], column: str, cell: Any) -> str | None | UserError:
    """The name in a cell, or what is wrong with it."""
    try:
        return name_of(cell)
    except UserError as problem:
        return UserError(f"{column} {problem}")


def _row(
    values: Mapping[str, Any],
    texts: Mapping[str, str | None | UserError],
    root: Path,
    numbers: Mapping[str, Mapping[str, int]],
) -> tuple[str, Sample, dict[str, Any]]:
    """(split, row, further columns) of one line of the table."""
    for text in texts.values():
        if isinstance(text, UserError):
            raise text
    names: dict[str, str | None] = {name: text for name, text in texts.items() if not isinstance(text, UserError)}
    file_name, person = values["file_name"], names["person_id"]
    if not isinstance(file_name, str) or not file_name or person is None:
        raise UserError(f"file_name {file_name!r:.200}, person_id {values['person_id']!r:.60}: give both")
    if not _is_file(root, file_name):
        raise UserError(f"there is no image {_shown(root / file_name)}: restore it or remove the row")
    split = values.get("split", UNSPLIT)
    if "split" in values and split not in SPLITS:
        raise UserError(f"split {split!r:.60} is unknown: give {', '.join(SPLITS)}")
    captions = values.get("caption")
    captions = [] if captions in (None, "") else captions if isinstance(captions, list) else [captions]
    if not all(isinstance(text, str) and is_utf8(text) and 0 < len(text.strip()) < MAX_CAPTION for text in captions):
        raise UserError(f"caption: not a text of 1 to {MAX_CAPTION - 1:,} characters: fix or remove it")
    further: dict[str, Any] = {"person_name": person}
    camera = UNKNOWN_CAMERA
    if "camera_id" in names:
        camera = _number(numbers["camera_id"], names["camera_id"])
        further["camera_name"] = names["camera_id"]
    for column in ("track_id", "clothes_id"):
        if column in names:
            further[column] = _number(numbers[column], names[column])
    file_name = PurePosixPath(file_name).as_posix()
    return split, Sample(file_name, numbers["person_id"][person], camera, tuple(captions)), further


def _number(numbers: Mapping[str, int], name: str | None) -> int:
    """The number of a camera, track or clothes; -1 where it is unknown."""
    return -1 if name is None else numbers[name]


def _is_file(root: Path, name: str) -> bool:
    """Whether the name is a file in the folder. Raises UserError for a path that leaves it."""
    return is_utf8(name) and os.path.isfile(safe_join(root, name))


def _dataset(parts: Mapping[str, Sequence[Found]], root: Path, source: str) -> DatasetDict:
    """Splits of the data contract with their further columns."""
    splits: dict[str, Dataset] = {}
    for split, rows in parts.items():
        made = make_split([row for row, _ in rows], root=root, source=source)
        for column in rows[0][1]:
            made = made.add_column(column, [further[column] for _, further in rows], feature=OPTIONAL_FEATURES[column])
        splits[split] = made
    return DatasetDict(splits)
