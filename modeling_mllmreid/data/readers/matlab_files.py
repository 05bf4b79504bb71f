"""MATLAB files, read by scipy in a process of its own: at some broken ones its reader ends the whole process."""

import json
import os
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.errors import UserError
from ...utils.formats import MatlabVariables
from ...utils.json_files import parse_json

PROGRAM = Path(__file__).with_name("matlab_process.py")
SECONDS = 60
EXACT = 2**53  # MATLAB stores numbers as float64, which are exact below


def load_matlab(path: Path, names: Collection[str], *, remedy: str) -> dict[str, Any]:
    """Those of the variables that the file holds, as nested lists: see `matlab_process`. remedy: how to get the file.

    Raises UserError for a missing file and one that cannot be read.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file: {remedy}")
    # Isolated: no variable, debugger or module of the working folder; the packages are those of this process.
    packages = json.dumps([str(folder) for folder in sys.path if folder])
    command = [sys.executable, "-I", "-B", str(PROGRAM), packages, *names]
    where = f"{path}: not readable as a MATLAB file"
    try:
        with path.open("rb") as file:
            done = subprocess.run(command, stdin=file, capture_output=True, timeout=SECONDS)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): make it readable") from error
    except subprocess.TimeoutExpired as error:
        raise UserError(f"{where} (no end after {SECONDS} s): restore the file") from error
    if done.returncode:
        line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        reason = " ".join(line.split())[:200] or f"scipy's reader ended with code {done.returncode}"
        raise UserError(f"{where} ({reason}): restore the file")
    return parse_json(done.stdout, MatlabVariables, where=where)


def whole_numbers(value: Any, where: str) -> list[int]:
    """The numbers of nested lists, in order. Raises UserError for others than whole ones from 0."""
    try:
        numbers = np.ravel(np.asarray(value))
    except ValueError:  # lists of different lengths
        numbers = np.array([None])
    if numbers.dtype.kind not in "iuf" or not np.all(
        (numbers >= 0) & (numbers < EXACT) & (numbers == np.floor(numbers))
    ):
        raise UserError(f"{where}: not all are whole numbers from 0: restore the file")
    return [int(number) for number in numbers]


def texts(value: Any, where: str) -> list[str]:
    """The texts of a cell array or of an array of texts, one of each cell. Raises UserError for other cells."""
    found = []
    for cell in (cell for row in value for cell in (row if isinstance(row, list) else [row])):
        text = cell[0] if isinstance(cell, list) and len(cell) == 1 else cell
        if not isinstance(text, str):
            raise UserError(f"{where}: not all are texts: restore the file")
        found.append(text)
    return found
