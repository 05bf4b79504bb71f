"""Locks on files and folders: they end with the process that holds them, however that ends."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

# Loading processes of a run that was killed hold its lock until they see that it is gone, which takes them 5 seconds.
PATIENCE = 30.0


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the lock of a file or folder until it is closed; None where another process holds it.

    None where there is no such file, too. On a system without `flock` nothing is locked, and nothing counts as held by
    somebody else. Raises OSError where it cannot be opened.
    """
    try:
        number = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        os.close(number)
        return None
    return number


@contextmanager
def only_writer(path: Path, *, what: str) -> Iterator[None]:
    """Within the block no other process writes to a file that exists, or into a folder, which is made where missing.

    A launcher that is killed leaves its processes behind, and they go on: with the same command started again two runs
    would write each other's results. what: names the work in the message. Raises UserError where another process is
    still there after `PATIENCE` seconds.
    """
    if not path.exists():
        path.mkdir(mode=0o700, parents=True)
    deadline = time.monotonic() + PATIENCE
    while (number := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise UserError(
                f"{path}: another {what} writes there: wait until it has ended, end it (a killed launcher leaves its "
                "processes behind), or give another path"
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        os.close(number)
