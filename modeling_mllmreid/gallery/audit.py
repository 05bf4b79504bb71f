"""The audit trail: one line for each search and deletion, kept apart from the gallery, with its own retention."""

import getpass
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

from ..utils.errors import UserError
from ..utils.outputs import owner_only, refused_by_disk
from .filters import Where
from .rows import utc_now

DAY_FILE = re.compile(r"(\d{4}-\d{2}-\d{2})\.jsonl")


class Audit:
    """A folder with one file for each day.

    Args:
        folder (`str` or `os.PathLike`): Where the files are; it is created at the first line.
        days (`int`): Days that a file is kept.

    Raises:
        UserError: `days` is below 1.
    """

    def __init__(self, folder: str | os.PathLike[str], days: int = 365):
        if days < 1:
            raise UserError(f"audit_days {days}: give 1 or more")
        self.folder, self.days = Path(folder), days

    def check(self) -> None:
        """Raises UserError if no line can be written, before something is done that needs one."""
        self._append(utc_now(), b"")

    def write(
        self,
        action: str,
        *,
        query: str | None = None,
        where: Where | None = None,
        results: int,
        who: str | None = None,
        verify_top: int = 0,
    ) -> None:
        """Appends a line, and removes the files of days that are no longer kept.

        Args:
            action (`str`): What was done, such as "search".
            query (`str`, *optional*): Digest of the query, see `query_digest`, or the id of a decision.
            where ([`Where`], *optional*): The conditions.
            results (`int`): Number of rows that were found or erased.
            who (`str`, *optional*): The user; by default the one who runs this process.
            verify_top (`int`): Number of rows that were verified; a line without verification does not name it.

        Raises:
            UserError: The folder cannot be written.
        """
        now = utc_now()
        entry = {
            "time": now.isoformat(timespec="seconds"),
            "who": who or user_name(),
            "action": action,
            "query": query,
            "where": str(where) if where else None,
            "results": results,
            **({"verify_top": verify_top} if verify_top else {}),
        }
        # One call: lines of several processes do not mix.
        self._append(now, (json.dumps(entry, ensure_ascii=False) + "\n").encode())
        self._remove_old(now)

    def _append(self, now: datetime, line: bytes) -> None:
        """Appends to the file of a day. Raises UserError if the folder cannot be written."""
        path = self.folder / f"{now:%Y-%m-%d}.jsonl"
        with refused_by_disk(path), owner_only():
            self.folder.mkdir(parents=True, exist_ok=True)
            number = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(number, line)
            finally:
                os.close(number)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yields the lines, oldest first."""
        for path in sorted(self.folder.glob("*.jsonl")):
            if DAY_FILE.fullmatch(path.name):
                with open(path, encoding="utf-8") as file:  # `splitlines` would divide at U+2028, too
                    yield from map(json.loads, file)

    def _remove_old(self, now: datetime) -> None:
        """Removes the files of days before the retention; no other file."""
        oldest = date.fromordinal(max(1, now.toordinal() - self.days)).isoformat()
        for path in self.folder.glob("*.jsonl"):
            day = DAY_FILE.fullmatch(path.name)
            if day and day[1] < oldest:
                path.unlink(missing_ok=True)


def audit_of(gallery: str, folder: str | None, days: int) -> Audit:
    """Returns the audit trail of a gallery: in a folder, or next to it; that of a bucket in the working directory."""
    name = gallery.rstrip("/")
    return Audit(folder or f"{name.rpartition('/')[2] if '://' in name else name}.audit", days)


def query_digest(images: Sequence[bytes] = (), text: str = "") -> str:
    """Returns the SHA-256 digest of a query: of its image files, or of its words or id. It does not show the person."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(hashlib.sha256(image).digest())
    digest.update(text.encode())
    return digest.hexdigest()


def user_name() -> str:
    """Returns the name of the user who runs this process, or the number if it has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
