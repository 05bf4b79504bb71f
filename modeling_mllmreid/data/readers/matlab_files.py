"""The `.mat` files of published sets: whatever a broken one makes its reader raise is one line."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError

EXACT = 2**53  # MATLAB stores numbers as float64, which are exact below


def load_matlab(path: Path, names: Sequence[str], *, of: str) -> dict[str, Any]:
    """The variables of a file. of: whose file it is, for the messages.

    Raises UserError for a missing file, one that cannot be read or lacks a variable, and where scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(f"{of} needs scipy, which is not installed: pip install 'mllmreid[mat]'") from error
    if not path.is_file():
        raise UserError(f"{path}: no such file: restore it")
    try:
        content = loadmat(path, variable_names=list(names))
    except Exception as error:  # broken bytes raise whatever the parser met: zlib.error, TypeError, MatReadError, ...
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not readable as a MATLAB file ({reason}): restore it") from error
    missing = [name for name in names if name not in content]
    if missing:
        raise UserError(f"{path}: holds no {', '.join(missing)}: restore the file that {of} was published with")
    return content


def whole_numbers(value: Any, where: str) -> list[int]:
    """The numbers of an array of any shape, in MATLAB's reading order. Raises UserError for others than whole ones."""
    numbers = np.ravel(np.asarray(value))
    if numbers.dtype.kind not in "iuf" or not np.all((numbers >= 0) & (numbers < EXACT) & (numbers % 1 == 0)):
        raise UserError(f"{where}: not all are whole numbers from 0: restore the file")
    return [int(number) for number in numbers]
