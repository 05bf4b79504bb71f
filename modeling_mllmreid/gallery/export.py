"""The rows of a gallery as CSV, JSON or Parquet."""

import csv
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from ..utils.errors import UserError
from ..utils.outputs import atomic_file, check_new_file
from .filters import Where
from .gallery import Gallery
from .rows import DESCRIBED

SUFFIXES = (".csv", ".json", ".parquet")
TEXT_COLUMNS = ("id", *(name for name in DESCRIBED if name != "thumbnail"))
# A spreadsheet runs a text that begins so.
FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_rows(gallery: Gallery, path: str | os.PathLike[str], where: Where | None = None) -> int:
    """Writes rows to a file. CSV and JSON have no features and no pictures; Parquet has all columns.

    Args:
        gallery ([`Gallery`]): The gallery.
        path (`str` or `os.PathLike`): A file that ends in .csv, .json or .parquet.
        where ([`Where`], *optional*): Which rows.

    Returns:
        `int`: Number of rows.

    Raises:
        UserError: The file has another ending, exists, or cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"output {path}: ends in none of {', '.join(SUFFIXES)}: give such a file")
    check_new_file(path)
    ids = [hit.id for hit in gallery.find(where or Where())]
    columns = gallery.store.schema.names if path.suffix.lower() == ".parquet" else TEXT_COLUMNS
    table = gallery.store.read(columns, ids)[1].sort_by("id")
    with atomic_file(path) as temporary:
        if path.suffix.lower() == ".parquet":
            parquet.write_table(table, temporary)
        elif path.suffix.lower() == ".json":
            temporary.write_text(json.dumps(_texts(table), ensure_ascii=False, indent=1), encoding="utf-8")
        else:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, TEXT_COLUMNS)
                writer.writeheader()
                writer.writerows({name: _cell(value) for name, value in row.items()} for row in _texts(table))
    return len(table)


def _texts(table: pa.Table) -> list[dict[str, Any]]:
    """Returns the rows with times as ISO 8601."""
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        for name in ("time", "expires"):
            row[name] = None if row[name] is None else row[name].isoformat()
    return rows


def _cell(value: Any) -> Any:
    """Returns a value for CSV; a text that a spreadsheet would run as a formula gets an apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
