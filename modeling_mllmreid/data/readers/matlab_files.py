"""MATLAB's version 5 files, read with every length checked: at some broken ones scipy's reader ends the whole process.

Arrays of numbers, texts, cells and structs are arrays as scipy returns them: a cell array is an array of objects, a
struct array has fields, a text is an array of its rows.
"""

import math
import os
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UserError

HEADER = 128
MAX_BYTES = 2**28
MAX_DEPTH = 16
EXACT = 2**53  # MATLAB stores numbers as float64, which are exact below

MATRIX, COMPRESSED = 14, 15
CELL, STRUCT, CHAR = 1, 2, 4
# Kinds of stored numbers, kinds of stored texts, and classes of arrays of numbers.
STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
COMPLEX = 0x800


class BrokenFileError(ValueError):
    """A file that is not as the format says."""


def load_matlab(path: Path, names: Collection[str], *, remedy: str) -> dict[str, Any]:
    """Those of the variables that the file holds. remedy: how to get the file.

    Raises UserError for a missing file and one that cannot be read.
    """
    if not os.path.isfile(path):
        raise UserError(f"{path}: no such file: {remedy}")
    try:
        if os.path.getsize(path) > MAX_BYTES:
            raise BrokenFileError(f"larger than {MAX_BYTES >> 20} MiB")
        return _variables(path.read_bytes(), names)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): make it readable") from error
    except (ValueError, zlib.error) as error:
        raise UserError(f"{path}: not readable as a MATLAB file of version 5 ({error}): {remedy}") from error


def whole_numbers(value: Any, where: str) -> list[int]:
    """The numbers of an array of any shape, row by row. Raises UserError for others than whole ones from 0."""
    numbers = np.ravel(np.asarray(value))
    if numbers.dtype.kind not in "iuf" or not np.all(
        (numbers >= 0) & (numbers < EXACT) & (numbers == np.floor(numbers))
    ):
        raise UserError(f"{where}: not all are whole numbers from 0: restore the file")
    return [int(number) for number in numbers]


def _variables(content: bytes, names: Collection[str]) -> dict[str, Any]:
    order = {b"IM": "<", b"MI": ">"}.get(content[126:HEADER])
    if order is None:
        raise BrokenFileError("another header")
    elements = _Elements(memoryview(content)[HEADER:], order)
    found = {}
    while elements:
        kind, data = elements.next()
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            data = memoryview(unpacker.decompress(data, MAX_BYTES))
            if not unpacker.eof:
                raise BrokenFileError("cut short")
            kind, data = _Elements(data, order).next()
        if kind == MATRIX:
            name, value = _matrix(data, order, names)
            if name in names:
                found[name] = value
    return found


class _Elements:
    """The elements in a stretch of bytes, one after the other."""

    def __init__(self, data: memoryview, order: str):
        self.data, self.order, self.place = data, order, 0

    def __bool__(self) -> bool:
        return self.place < len(self.data)

    def next(self) -> tuple[int, memoryview]:
        """(kind, bytes) of the next element."""
        kind, size = struct.unpack(f"{self.order}II", self._taken(8))
        if kind >> 16:  # up to four bytes lie in the tag itself
            size, kind = kind >> 16, kind & 0xFFFF
            if size > 4:
                raise BrokenFileError("a small element of more than 4 bytes")
            return kind, self.data[self.place - 4 : self.place - 4 + size]
        data = self._taken(size)
        if kind != COMPRESSED:
            self.place += -size % 8
        return kind, data

    def numbers(self) -> np.ndarray:
        """The next element, of numbers."""
        kind, data = self.next()
        dtype = np.dtype(f"{self.order}{STORED[kind]}") if kind in STORED else None
        if dtype is None or len(data) % dtype.itemsize:
            raise BrokenFileError("no numbers where numbers belong")
        return np.frombuffer(data, dtype)

    def _taken(self, size: int) -> memoryview:
        if size > len(self.data) - self.place:
            raise BrokenFileError("cut short")
        self.place += size
        return self.data[self.place - size : self.place]


def _matrix(data: memoryview, order: str, names: Collection[str] | None = None, depth: int = 0) -> tuple[str, Any]:
    """(name, array) of a matrix element; its content is left out where its name is none of the names."""
    if not data:
        return "", np.empty((0, 0))
    if depth > MAX_DEPTH:
        raise BrokenFileError("too deeply nested")
    elements = _Elements(data, order)
    flags, shape = elements.numbers(), [int(size) for size in elements.numbers()]
    if len(flags) != 2 or min(shape, default=-1) < 0:
        raise BrokenFileError("an array without a shape")
    name = elements.numbers().tobytes().decode("latin-1")
    if names is not None and name not in names:
        return name, None
    kind, count = int(flags[0]) & 0xFF, math.prod(shape)
    # No shape can ask for more memory than the file is long: each array in a cell or a field has a tag of 8 bytes.
    if count * (8 if kind in (CELL, STRUCT) else 1) > len(data) or int(flags[0]) & COMPLEX:
        raise BrokenFileError("an array larger than its content, or of complex numbers")
    if kind == CELL:
        cells = np.empty(count, dtype=object)
        for place in range(count):
            cells[place] = _item(elements, order, depth)
        return name, cells.reshape(shape, order="F")
    if kind == STRUCT:
        return name, _struct(elements, order, shape, depth)
    if kind == CHAR:
        return name, _text(elements, shape)
    if kind in CLASSES:
        numbers = elements.numbers()
        if len(numbers) != count:
            raise BrokenFileError("an array of another size than its content")
        return name, numbers.astype(CLASSES[kind]).reshape(shape, order="F")
    raise BrokenFileError(f"an array of class {kind}")


def _item(elements: _Elements, order: str, depth: int) -> Any:
    """The next element, an array in a cell or a field."""
    kind, data = elements.next()
    if kind != MATRIX:
        raise BrokenFileError("a cell without an array")
    return _matrix(data, order, depth=depth + 1)[1]


def _struct(elements: _Elements, order: str, shape: list[int], depth: int) -> np.ndarray:
    width = [int(size) for size in elements.numbers()]
    text = elements.numbers().tobytes()
    if len(width) != 1 or width[0] < 1 or len(text) % width[0] or not text:
        raise BrokenFileError("a struct without fields")
    fields = [text[at : at + width[0]].split(b"\0")[0].decode("latin-1") for at in range(0, len(text), width[0])]
    if len(set(fields)) < len(fields) or not all(fields):
        raise BrokenFileError("a struct with equal fields")
    count = math.prod(shape)
    if 8 * count * len(fields) > len(elements.data):
        raise BrokenFileError("a struct larger than its content")
    items = np.empty(count, dtype=[(field, object) for field in fields])
    for place in range(len(items)):
        items[place] = tuple(_item(elements, order, depth) for _ in fields)
    return items.reshape(shape, order="F")


def _text(elements: _Elements, shape: list[int]) -> np.ndarray:
    kind, data = elements.next()
    if kind not in TEXTS:
        raise BrokenFileError("no text where a text belongs")
    encoding = TEXTS[kind]
    if encoding in ("utf-16", "utf-32"):
        encoding += "-le" if elements.order == "<" else "-be"
    letters = list(bytes(data).decode(encoding))
    if len(letters) != math.prod(shape) or len(shape) != 2:
        raise BrokenFileError("a text of another size than its content")
    if not letters:
        return np.array([], dtype=str)
    rows = np.array(letters, dtype="U1").reshape(shape, order="F")
    return np.array(["".join(row) for row in rows], dtype=str)
