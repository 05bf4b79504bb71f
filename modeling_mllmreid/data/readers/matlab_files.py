"""MATLAB files, which scipy reads in a separate process (`matlab_process`).

On some broken files, scipy's reader crashes the process that runs it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.data_formats import MatlabVariables
from ...utils.errors import UserError
from ...utils.json_files import parse_json

PROGRAM = Path(__file__).with_name("matlab_process.py")
TIMEOUT_SECONDS = 60
EXACT_FLOATS = 2**53  # MATLAB stores numbers as float64, which represents whole numbers below this exactly


def load_matlab(path: Path, names: Collection[str], *, remedy: str) -> dict[str, Any]:
    """Reads variables of a MATLAB file.

    Args:
        path (`Path`): the file.
        names (`Collection[str]`): the names of the variables.
        remedy (`str`): the advice if the file does not exist.

    Returns:
        `dict[str, Any]`: the variables that the file has, as nested lists (see `matlab_process`).

    Raises:
        UserError: the file does not exist or cannot be read.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file: {remedy}")
    # -I ignores environment variables and modules of the working folder. The packages are those of this process.
    packages = json.dumps([str(folder) for folder in sys.path if folder])
    command = [sys.executable, "-I", "-B", str(PROGRAM), packages, *names]
    where = f"{path}: not readable as a MATLAB file"
    try:
        with path.open("rb") as file:
            process = subprocess.run(command, stdin=file, capture_output=True, timeout=TIMEOUT_SECONDS)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): make it readable") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{where} (not finished after {TIMEOUT_SECONDS} s): restore the file") from error
    if process.returncode:
        line = process.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        reason = " ".join(line.split())[:200] or f"scipy's reader ended with code {process.returncode}"
        raise UserError(f"{where} ({reason}): restore the file")
    return parse_json(process.stdout, MatlabVariables, where=where)


def whole_numbers(value: Any, where: str) -> list[int]:
    """Returns the numbers of nested lists, in order. Raises UserError if one is not a whole number from 0."""
    try:
        numbers = np.ravel(np.asarray(value))
    except ValueError:  # lists of different lengths
        numbers = np.array([None])
    if numbers.dtype.kind not in "iuf" or not np.all(
        (numbers >= 0) & (numbers < EXACT_FLOATS) & (numbers == np.floor(numbers))
    ):
        raise UserError(f"{where}: not all are whole numbers from 0: restore the file")
    return [int(number) for number in numbers]


def texts(value: Any, where: str) -> list[str]:
    """Returns the text of each cell of a cell array, or an array of texts. Raises UserError for other cells."""
    result = []
    for cell in (cell for row in value for cell in (row if isinstance(row, list) else [row])):
        text = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
        if not isinstance(text, str):
            raise UserError(f"{where}: not all are texts: restore the file")
        result.append(text)
    return result
