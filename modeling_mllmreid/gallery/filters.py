"""Conditions on the rows of a gallery, for searches and deletions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from ..utils.errors import UserError
from .rows import DESCRIPTIONS, INT64, Rows, as_datetime64, is_utf8, parse_time, utc_now

NUMBERS, TIMES = ("camera_id", "track_id"), ("time", "expires")


@dataclass(frozen=True)
class Where:
    """Which rows of a gallery are meant: those that meet all conditions.

    Args:
        cameras (`Sequence[int]`): The camera is one of these; empty for all cameras.
        since (`str` or `datetime`, *optional*): Not before this time, with a zone. Rows without a time do not meet it.
        until (`str` or `datetime`, *optional*): Before this time, with a zone.
        equal (`Sequence[str]`): Conditions `column=value`. Several on one column: one of them is met. `column=` means
            that the value is unknown.
        ids (`Sequence[str]`, *optional*): The row is one of these.

    Raises:
        UserError: A condition is not valid.

    Example:
        >>> from modeling_mllmreid import Where
        >>> str(Where(cameras=[1, 2], since="2026-11-28T08:00Z", equal=["source=hall"]))
        'camera_id in 1, 2; time from 2026-11-28T08:00:00+00:00; source=hall'
    """

    cameras: Sequence[int] = ()
    since: str | datetime | None = None
    until: str | datetime | None = None
    equal: Sequence[str] = ()
    ids: Sequence[str] | None = None
    _equal: dict[str, list[str]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, parse_time(value))
        if self.since is not None and self.until is not None and self.since >= self.until:  # type: ignore[operator]
            raise UserError(f"since {self.since}: is not before until {self.until}: no time meets both")
        for condition in self.equal:
            column, sign, value = condition.partition("=")
            if not sign:
                raise UserError(f"where {condition!r}: is no condition: write COLUMN=VALUE")
            if column not in DESCRIPTIONS:
                raise UserError(f"where {condition!r}: no such column: the columns are {', '.join(DESCRIPTIONS)}")
            if not is_utf8(value):
                raise UserError(f"where {condition[:60]!r}: is no UTF-8 text: correct it")
            self._equal.setdefault(column, []).append(value)
        for column, values in self._equal.items():
            for value in values:
                _typed(column, value)

    def __bool__(self) -> bool:
        return bool(self.cameras or self.since or self.until or self.equal or self.ids is not None)

    def __str__(self) -> str:
        """Returns the conditions in one line; "all rows" if there is none."""
        parts = [f"camera_id in {', '.join(map(str, self.cameras))}"] if self.cameras else []
        for word, time in (("from", self.since), ("before", self.until)):
            if isinstance(time, datetime):
                parts.append(f"time {word} {time.isoformat()}")
        parts += self.equal
        if self.ids is not None:
            parts.append(f"one of {len(self.ids)} ids")
        return "; ".join(parts) or "all rows"

    def mask(self, rows: Rows) -> np.ndarray:
        """Returns which rows meet the conditions, (N,) bool."""
        kept = np.ones(len(rows), dtype=bool)
        if self.ids is not None:
            kept[:] = False
            kept[rows.places(self.ids)] = True
        if self.cameras:
            kept &= np.isin(rows.columns["camera_id"], list(self.cameras))
        time = rows.columns["time"]
        # A comparison with NaT is false.
        if isinstance(self.since, datetime):
            kept &= time >= as_datetime64(self.since)
        if isinstance(self.until, datetime):
            kept &= time < as_datetime64(self.until)
        for column, values in self._equal.items():
            met = np.zeros(len(rows), dtype=bool)
            for value in values:
                met |= _equals(rows.columns[column], _typed(column, value))
            kept &= met
        return kept

    def sql(self, now: datetime | None = None) -> str:
        """Returns the conditions, and that the row has not expired, as a filter of the store.

        Args:
            now (`datetime`, *optional*): The time; by default now.

        Returns:
            `str`: An SQL condition. Texts are quoted, so that no value can change it.
        """
        parts = [f"(expires IS NULL OR expires > {_literal(now or utc_now())})"]
        if self.ids is not None:
            parts.append(_one_of("id", self.ids))
        if self.cameras:
            parts.append(_one_of("camera_id", list(self.cameras)))
        if isinstance(self.since, datetime):
            parts.append(f"time >= {_literal(self.since)}")
        if isinstance(self.until, datetime):
            parts.append(f"time < {_literal(self.until)}")
        for column, values in self._equal.items():
            typed = [_typed(column, value) for value in values]
            alternatives = [f"{column} IS NULL"] if None in typed else []
            alternatives += [f"{column} = ''"] if None in typed and column not in TIMES else []
            alternatives += [f"{column} = {_literal(value)}" for value in typed if value is not None]
            parts.append(f"({' OR '.join(alternatives)})")
        return " AND ".join(parts)


def live(rows: Rows, now: datetime | None = None) -> np.ndarray:
    """Returns which rows have not expired, (N,) bool."""
    expires = rows.columns["expires"]
    alive: np.ndarray = np.isnat(expires) | (expires > as_datetime64(now or utc_now()))
    return alive


def _typed(column: str, value: str) -> int | str | datetime | None:
    """Returns the value of a condition as its column stores it; None for unknown. Raises UserError."""
    if column in NUMBERS:
        number = _whole(value) if value else -1
        if number is None or not -INT64 <= number <= INT64:
            raise UserError(f"where {column}={value[:40]}: give a whole number")
        return number
    if not value:
        return None
    return parse_time(value) if column in TIMES else value


def _whole(value: str) -> int | None:
    """Returns the whole number that a text is, None if it is none."""
    try:
        return int(value)
    except ValueError:
        return None


def _equals(column: np.ndarray, value: int | str | datetime | None) -> np.ndarray:
    """Returns which values of a column (N,) are equal to a value; None means that it is unknown."""
    if column.dtype.kind == "M":
        met: np.ndarray = np.isnat(column) if not isinstance(value, datetime) else column == as_datetime64(value)
        return met
    if value is None:
        return np.array([text is None or text == "" for text in column], dtype=bool)
    met = np.asarray(column == value, dtype=bool)
    return met


def _literal(value: int | str | datetime) -> str:
    """Returns a value as SQL."""
    if isinstance(value, datetime):
        return f"TIMESTAMP '{value.astimezone(UTC).isoformat(timespec='microseconds')}'"
    return str(value) if isinstance(value, int) else f"'{value.replace(chr(39), 2 * chr(39))}'"


def _one_of(column: str, values: Sequence[int] | Sequence[str]) -> str:
    """Returns the condition that a column has one of these values."""
    return f"{column} IN ({', '.join(map(_literal, values))})" if values else "FALSE"
