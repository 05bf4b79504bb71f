"""New and changed rows of a gallery as tables."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ..utils.errors import UserError
from .rows import DESCRIBED, DIGEST, CropInfo

# Width and height of an embedded picture, at most.
THUMBNAIL = (128, 256)


def digest(path: str) -> str:
    """Returns the SHA-256 digest of a file. Raises UserError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): restore the file or correct the path") from error


def thumbnail(image: Image.Image) -> bytes:
    """Returns a small JPEG copy of an image."""
    image = image.copy()
    image.thumbnail(THUMBNAIL)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def known_by_digest(digests: Sequence[str], crops: Sequence[CropInfo]) -> dict[str, dict[str, Any]]:
    """Returns what is known about each image. Where an image comes several times, the last one that knows wins."""
    known: dict[str, dict[str, Any]] = {}
    for name, crop in zip(digests, crops, strict=True):
        known.setdefault(name, {}).update(crop.known())
    return known


def known_values(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a row that are known, without its id."""
    return {name: value for name, value in row.items() if name in DESCRIBED and value != DESCRIBED[name][1]}


def new_rows(schema: pa.Schema, features: np.ndarray, described: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Returns rows as a table.

    Args:
        schema (`pa.Schema`): That of the gallery.
        features (`np.ndarray`): (N, D) float32.
        described (`Sequence[Mapping]`): N rows: `id`, and any columns that describe a crop.

    Returns:
        `pa.Table`

    Raises:
        UserError: A feature is not finite, all zeros or of another width, or an id is no SHA-256 digest.
    """
    if not described:
        return schema.empty_table()
    width = schema.field("feature").type.list_size
    if features.shape != (len(described), width) or not np.isfinite(features).all():
        raise UserError(
            f"features: have the shape {features.shape}, or NaN or infinity: give {len(described)} rows of {width} "
            "finite numbers"
        )
    if not (some := features.any(1)).all():
        raise UserError(f"features: row {int(some.argmin())} is all zeros: no image has such a feature")
    for row in described:
        if not DIGEST.fullmatch(str(row.get("id"))):
            raise UserError(f"id {row.get('id')!r}: is no SHA-256 digest in hexadecimal digits")
    flat = pa.array(np.ascontiguousarray(features, dtype=np.float32).ravel())
    columns = [
        pa.array([row["id"] for row in described], pa.string()),
        pa.FixedSizeListArray.from_arrays(flat, width),
    ]
    columns += [
        pa.array([row.get(name, default) for row in described], kind) for name, (kind, default) in DESCRIBED.items()
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def changed_rows(table: pa.Table, known: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Returns the rows of a table that change, with their new values.

    Args:
        table (`pa.Table`): Rows of the gallery, with all columns.
        known (`Mapping`): New values of columns by id.

    Returns:
        `pa.Table`
    """
    rows = table.to_pylist()
    changed = [
        row | values for row in rows if (values := dict(known[row["id"]])) != {name: row[name] for name in values}
    ]
    return pa.Table.from_pylist(changed, schema=table.schema)
