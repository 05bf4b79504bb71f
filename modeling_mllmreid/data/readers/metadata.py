"""Metadata tables of a user's own data: CSV, JSON lines and Parquet files."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ...utils.errors import UserError
from ..contract import refuse_rounded


def read_metadata(table: Path, known: Sequence[str], required: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """Reads a metadata table.

    All cells of a CSV file are read as text, so that no id becomes a number. JSON lines may have whole numbers of any
    size.

    Args:
        table (`Path`): a `.csv`, `.jsonl` or `.parquet` file.
        known (`Sequence[str]`): the columns to read.
        required (`Sequence[str]`): the columns that the table must have.

    Returns:
        `tuple[dict[str, list[Any]], list[str]]`: known column -> its cells, and the names of the other columns.

    Raises:
        UserError: the file cannot be read, or a column is missing or repeated.
    """
    readers = {".csv": _read_csv, ".jsonl": _read_json_lines, ".parquet": _read_parquet}
    try:
        names, columns = readers[table.suffix](table, known)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{table}: not readable ({' '.join(str(error).split())[:200]}): fix the file") from error
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise UserError(f"{table}: column {repeated[0]!r} occurs twice: rename or remove one")
    missing = [name for name in required if name not in names]
    if missing:
        existing = ", ".join(names) or "none"
        raise UserError(f"{table}: no column {', '.join(missing)}, but {existing:.300}: rename or add it")
    return columns, [name for name in names if name not in known]


def _read_csv(table: Path, known: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """Returns the names of all columns, and the cells of the known ones as text."""
    convert = pa.csv.ConvertOptions(column_types=dict.fromkeys(known, pa.string()), strings_can_be_null=False)
    content = pa.csv.read_csv(
        table, parse_options=pa.csv.ParseOptions(newlines_in_values=True), convert_options=convert
    )
    names = content.column_names
    for separator, separator_name in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(names) == 1 and separator in names[0]:
            raise UserError(f"{table}: its columns are separated by {separator_name}: save it with commas")
    return names, {name: content[name].to_pylist() for name in known if names.count(name) == 1}


def _read_json_lines(table: Path, known: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """Returns the names of all fields, and the values of the known ones."""
    names: dict[str, None] = {}
    rows: list[dict[str, Any]] = []
    # Not `splitlines`: a caption may contain the line separators of Unicode.
    for number, line in enumerate(table.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_refuse_constant, object_pairs_hook=_object)
            if not isinstance(row, dict):
                raise ValueError("not an object: write {...}")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{table}: line {number}: not a JSON object ({error}): fix the line") from None
        names |= dict.fromkeys(row)
        rows.append({name: row.get(name) for name in known})
    return list(names), {name: [row[name] for row in rows] for name in known if name in names}


def _refuse_constant(word: str) -> NoReturn:
    """Refuses NaN and Infinity, which JSON does not have."""
    raise ValueError(f"{word} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the object. Raises ValueError for a repeated field, because one of its values would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"field {repeated!r} occurs twice")
    return content


def _read_parquet(table: Path, known: Sequence[str]) -> tuple[list[str], dict[str, list[Any]]]:
    """Returns the names of all columns, and the cells of the known ones."""
    # `read_table` would add columns for folders that are named key=value.
    with pa.parquet.ParquetFile(table) as file:
        names = file.schema_arrow.names
        columns = [name for name in known if names.count(name) == 1]
        for name in columns:
            kind = file.schema_arrow.field(name).type
            value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if name != "caption" and pa.types.is_nested(value_kind):
                raise UserError(f"{table}: column {name} is {kind}: save it as one text or number per row")
        content = file.read(columns=columns)
        for name in columns:
            refuse_rounded(content[name], f"{table}: column {name}")
        return names, {name: content[name].to_pylist() for name in columns}
