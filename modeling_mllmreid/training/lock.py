"""One training at a time in an output folder."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError

# Loading processes of a run that was killed hold its lock until they see that it is gone, which takes them 5 seconds.
PATIENCE = 30.0


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Within the block no other process trains into the folder, which is made where it is missing.

    A launcher that is killed leaves its processes behind, and they train on: with the same command started again two
    runs would write each other's checkpoints. Raises UserError where another one is still there after `PATIENCE`
    seconds. A system without `flock` is not guarded.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    # The lock is on the folder itself, and is gone with the process, however that ends.
    number = os.open(folder, os.O_RDONLY)
    deadline = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UserError(
                        f"output_dir {folder}: another training writes there: wait until it has ended, end it (a "
                        "killed launcher leaves its processes behind), or give another folder"
                    ) from None
                time.sleep(0.2)
        yield
    finally:
        os.close(number)
