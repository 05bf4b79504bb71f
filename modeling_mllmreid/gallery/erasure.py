"""Traces: how often the bytes of erased rows occur in the files of a gallery."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from .rows import Rows

WORD = 8
# An occurrence of this many bytes contains a whole word at an address that is a multiple of 8.
SHORTEST = 2 * WORD - 1
CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Traces:
    """The result of a search for the bytes of erased rows.

    Args:
        count (`int`): Occurrences in all files.
        files (`list[str]`): Files with an occurrence.
        searched_bytes (`int`): Size of the files that were read.
        patterns (`int`): Different byte strings that were searched for.
        shared (`int`): Byte strings that rows still there have too, so that they were not searched for.
    """

    count: int
    files: list[str]
    searched_bytes: int
    patterns: int
    shared: int


class Patterns:
    """Byte strings to search for. The time of a search does not depend on their number.

    Args:
        patterns (`Iterable[bytes]`): Byte strings of any length above 0.
    """

    def __init__(self, patterns: Iterable[bytes]):
        self.all = frozenset(patterns)
        self.short = sorted(pattern for pattern in self.all if len(pattern) < SHORTEST)
        # Where a word stands in patterns, and their lengths. Many patterns begin alike, and then have one entry.
        self.places: dict[int, set[tuple[int, int]]] = defaultdict(set)
        for pattern in self.all - set(self.short):
            for offset in range(WORD):
                word = int.from_bytes(pattern[offset : offset + WORD], "little")
                self.places[word].add((offset, len(pattern)))
        self.words = np.array(sorted(self.places), dtype=np.uint64)

    def find(self, content: bytes) -> list[bytes]:
        """Returns the byte strings in the content, once for each occurrence."""
        found = [pattern for pattern in self.short for _ in range(content.count(pattern))]
        whole = len(content) // WORD
        if not len(self.words) or not whole:
            return found
        aligned = np.frombuffer(content, dtype="<u8", count=whole)
        occurrences: set[tuple[int, bytes]] = set()
        step = CHUNK_BYTES // WORD
        for start in range(0, whole, step):
            chunk = aligned[start : start + step]
            entry = np.minimum(np.searchsorted(self.words, chunk), len(self.words) - 1)
            for hit in np.flatnonzero(self.words[entry] == chunk):
                for offset, length in self.places[int(chunk[hit])]:
                    begin = (start + int(hit)) * WORD - offset
                    piece = content[begin : begin + length] if begin >= 0 else b""
                    if piece in self.all:
                        occurrences.add((begin, piece))
        return found + [piece for _, piece in occurrences]


def find_traces(patterns: Iterable[bytes], files: Iterable[tuple[str, Callable[[], bytes]]], shared: int = 0) -> Traces:
    """Counts the occurrences of byte strings in files.

    Args:
        patterns (`Iterable[bytes]`): Byte strings of any length above 0.
        files (`Iterable`): Name of each file, and a function that reads it.
        shared (`int`): Byte strings that were left out, for the report.

    Returns:
        [`Traces`]
    """
    searched = Patterns(patterns)
    count, found, size = 0, [], 0
    for name, read in files:
        content = read()
        size += len(content)
        here = len(searched.find(content))
        count += here
        if here:
            found.append(name)
    return Traces(count, found, size, len(searched.all), shared)


def bytes_of(rows: Rows, chosen: np.ndarray) -> set[bytes]:
    """Returns the byte strings that identify rows: features, ids and file names."""
    features = {row.tobytes() for row in rows.features[chosen]}
    texts = [*rows.ids[chosen], *rows.columns["file_name"][chosen]]
    return features | {text.encode() for text in texts if text}


def shared_bytes(patterns: set[bytes], rows: Rows, kept: np.ndarray) -> set[bytes]:
    """Returns the byte strings that rows still there have too: equal features, and names that are part of a name."""
    names = "\n".join(name for name in rows.columns["file_name"][kept] if name).encode()
    features = rows.features[kept]
    equal = {row.tobytes() for row in features[np.isin(features[:, 0], _first_numbers(patterns, features))]}
    return (patterns & equal) | set(Patterns(patterns).find(names))


def _first_numbers(patterns: set[bytes], features: np.ndarray) -> np.ndarray:
    """Returns the first number of each pattern that is as long as a feature: few rows have one of them too."""
    size = features.shape[1] * features.itemsize
    return np.array([np.frombuffer(pattern[:4], np.float32)[0] for pattern in patterns if len(pattern) == size])
