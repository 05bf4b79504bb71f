"""A metadata table as columns of plain values: CSV, JSON lines or Parquet, every cell as it is written."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from ...errors import UserError
from ..columns import refuse_rounded

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
