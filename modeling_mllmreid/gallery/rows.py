"""A row of the gallery: its columns, their checks, and the rows in memory."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from ..utils.errors import UserError

INT64 = 2**63 - 1
# Lance compresses by default. A search for the bytes of an erased row would then find nothing, even if they are there.
PLAIN = {"lance-encoding:compression": "none"}
TIME = pa.timestamp("us", tz="UTC")
# Columns that describe a crop, with their values where nothing is known.
DESCRIBED: dict[str, tuple[pa.DataType, Any]] = {
    "file_name": (pa.string(), None),
    "thumbnail": (pa.binary(), None),
    "camera_id": (pa.int64(), -1),
    "time": (TIME, None),
    "track_id": (pa.int64(), -1),
    "source": (pa.string(), ""),
    "person": (pa.string(), None),
    "expires": (TIME, None),
    # Of `decisions.py`: JSON.
    "decisions": (pa.string(), ""),
}
# What a search reads. Thumbnails are read for the rows that are shown.
DESCRIPTIONS = ("id", "file_name", "camera_id", "time", "track_id", "source", "person", "expires")
DIGEST = re.compile("[0-9a-f]{64}")
# Characters that break a line or change the direction of what follows.
CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
LONGEST_TEXT = 1000


def is_utf8(text: str) -> bool:
    """Returns whether a text can be UTF-8. The command line has other characters for bytes that are not."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def row_schema(width: int, metadata: Mapping[str, str]) -> pa.Schema:
    """Returns the columns of a gallery with features of `width` numbers."""
    columns = {"id": pa.string(), "feature": pa.list_(pa.float32(), width)}
    columns |= {name: kind for name, (kind, _) in DESCRIBED.items()}
    return pa.schema([pa.field(name, kind, metadata=PLAIN) for name, kind in columns.items()], metadata=dict(metadata))


def parse_time(text: str | datetime) -> datetime:
    """Returns a point in time in UTC.

    Args:
        text (`str` or `datetime`): ISO 8601 with a zone, such as `2026-11-28T09:30:00+01:00`.

    Raises:
        UserError: It is no time, or has no zone.
    """
    try:
        time = text if isinstance(text, datetime) else datetime.fromisoformat(text.strip())
    except ValueError:
        raise UserError(f"time {text!r}: is no time: write it as 2026-11-28T09:30:00+01:00") from None
    if time.tzinfo is None:
        raise UserError(f"time {str(text)!r}: has no zone: add one, such as +01:00 or Z")
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise UserError(f"time {str(text)!r}: is outside the calendar: give another one") from None


@dataclass(frozen=True)
class CropInfo:
    """What is known about one image, besides its pixels.

    Args:
        camera_id (`int`): Number of the camera; -1 if unknown.
        time (`str` or `datetime`, *optional*): When it was taken, with a zone.
        track_id (`int`): Number of the track; -1 if unknown.
        source (`str`): Where it comes from, in any words.
        person (`str`, *optional*): Name that a human gave.
        expires (`str` or `datetime`, *optional*): When the row has to be erased, with a zone.

    Raises:
        UserError: A value is not of its kind.

    Example:
        >>> from modeling_mllmreid import CropInfo
        >>> CropInfo(camera_id=3, time="2026-11-28T09:30:00+01:00", source="hall").known()
        {'camera_id': 3, 'time': datetime.datetime(2026, 11, 28, 8, 30, tzinfo=datetime.timezone.utc), 'source': 'hall'}
    """

    camera_id: int = -1
    time: str | datetime | None = None
    track_id: int = -1
    source: str = ""
    person: str | None = None
    expires: str | datetime | None = None

    def __post_init__(self) -> None:
        for name in ("camera_id", "track_id"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or not -1 <= value <= INT64:
                raise UserError(f"{name} {value!r}: give a whole number from 0, or -1 if it is unknown")
            object.__setattr__(self, name, int(value))
        for name in ("time", "expires"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, parse_time(value))
        for name in ("source", "person"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or CONTROLS.search(value)):
                raise UserError(f"{name} {value!r}: give a text of one line")
            if value is not None and len(value) > LONGEST_TEXT:
                raise UserError(f"{name} {value[:40]!r}...: has {len(value)} characters, more than {LONGEST_TEXT}")
        if self.person == "":
            object.__setattr__(self, "person", None)

    def values(self) -> dict[str, Any]:
        """Returns the values by column."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def known(self) -> dict[str, Any]:
        """Returns the values that are known, by column."""
        return {name: value for name, value in self.values().items() if value != DESCRIBED[name][1]}


@dataclass(frozen=True)
class Rows:
    """Rows in memory, sorted by id.

    Args:
        features (`np.ndarray`): (N, D) float32.
        columns (`dict[str, np.ndarray]`): The columns of `DESCRIPTIONS`, (N,) each: whole numbers as int64, texts as
            objects with None where there is none, times as datetime64[us] in UTC with NaT where there is none.
    """

    features: np.ndarray
    columns: dict[str, np.ndarray]

    @classmethod
    def from_table(cls, table: pa.Table, features: np.ndarray) -> "Rows":
        """Converts the columns that a search reads; they and the features are sorted by id."""
        columns = {}
        for name in DESCRIPTIONS:
            column = table[name]
            if pa.types.is_timestamp(column.type):
                column = column.cast(pa.timestamp("us"))
            columns[name] = column.to_numpy()
        return cls(features, columns)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def ids(self) -> np.ndarray:
        """The ids (N,), sorted."""
        return self.columns["id"]

    def part(self, chosen: np.ndarray) -> "Rows":
        """Returns the chosen rows, by a mask (N,)."""
        return Rows(self.features[chosen], {name: column[chosen] for name, column in self.columns.items()})

    def places(self, ids: Sequence[str]) -> np.ndarray:
        """Returns the places of ids that are there, (n,), in their order."""
        wanted = np.asarray(ids, dtype=object)
        places = np.searchsorted(self.ids, wanted) if len(self) else np.zeros(len(wanted), int)
        there = places < len(self)
        there[there] = self.ids[places[there]] == wanted[there]
        return places[there]


def utc_now() -> datetime:
    """Returns the time now. One place, so that tests can set the clock."""
    return datetime.now(UTC)


def as_datetime64(time: datetime) -> np.datetime64:
    """Returns a time as the columns in memory store it."""
    return np.datetime64(time.astimezone(UTC).replace(tzinfo=None), "us")
