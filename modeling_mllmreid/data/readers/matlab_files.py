"""The `.mat` files of published sets: whatever a broken one makes its reader raise is one line."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError

EXACT = 2**53  # MATLAB stores numbers as float64, which are exact below


def load_matlab(path: Path, names: Sequence[str], *, of: str, remedy: str) -> dict[str, Any]:
    """Those of the variables that the file holds. of: whose file it is; remedy: how to get it.

    Raises UserError for a missing file and one that cannot be read, and where scipy is not installed.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(f"{of} needs scipy, which is not installed: pip install 'mllmreid[mat]'") from error
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file: {remedy}")
    try:
        return loadmat(path, variable_names=list(names))
    except Exception as error:  # broken bytes raise whatever the parser met: zlib.error, TypeError, MatReadError, ...
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not readable as a MATLAB file ({reason}): restore the file") from error


def whole_numbers(value: Any, where: str) -> list[int]:
    """The numbers of an array of any shape, row by row. Raises UserError for others than whole ones."""
    numbers = np.ravel(np.asarray(value))
    if numbers.dtype.kind not in "iuf" or not np.all(
        (numbers >= 0) & (numbers < EXACT) & (numbers == np.floor(numbers))
    ):
        raise UserError(f"{where}: not all are whole numbers from 0: restore the file")
    return [int(number) for number in numbers]
