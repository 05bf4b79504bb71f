"""Traces: how often the bytes of erased rows occur in the files of a gallery."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from .rows import Rows
from .store import Store

WORD = 8
# An occurrence of this many bytes contains a whole word at an address that is a multiple of 8.
SHORTEST = 2 * WORD - 1
# A part of a file that is in memory at once.
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

    def find(self, content: bytes) -> set[tuple[int, bytes]]:
        """Returns the places in the content where a byte string begins, with the byte string."""
        found: set[tuple[int, bytes]] = set()
        for pattern in self.short:
            begin = content.find(pattern)
            while begin >= 0:
                found.add((begin, pattern))
                begin = content.find(pattern, begin + 1)
        whole = len(content) // WORD
        if not len(self.words) or not whole:
            return found
        aligned = np.frombuffer(content, dtype="<u8", count=whole)
        entry = np.minimum(np.searchsorted(self.words, aligned), len(self.words) - 1)
        for hit in np.flatnonzero(self.words[entry] == aligned):
            for offset, length in self.places[int(aligned[hit])]:
                begin = int(hit) * WORD - offset
                piece = content[begin : begin + length] if begin >= 0 else b""
                if piece in self.all:
                    found.add((begin, piece))
        return found

    def count(self, file: BinaryIO) -> tuple[int, int]:
        """Returns the number of occurrences in a file, and its size. A part of it is in memory at once."""
        count, size, content = 0, 0, b""
        # The end of a part, in which an occurrence may begin that ends in the next one.
        overlap = max(map(len, self.all), default=1) - 1
        while block := file.read(CHUNK_BYTES):
            known = len(content)
            content += block
            count += sum(begin + len(piece) > known for begin, piece in self.find(content))
            size += len(block)
            content = content[len(content) - overlap :] if overlap < len(content) else content
        return count, size


def find_traces(
    patterns: Iterable[bytes], files: Iterable[tuple[str, Callable[[], BinaryIO]]], shared: int = 0
) -> Traces:
    """Counts the occurrences of byte strings in files.

    Args:
        patterns (`Iterable[bytes]`): Byte strings of any length above 0.
        files (`Iterable`): Name of each file, and a function that opens it.
        shared (`int`): Byte strings that were left out, for the report.

    Returns:
        [`Traces`]
    """
    searched = Patterns(patterns)
    count, found, size = 0, [], 0
    for name, open_file in files:
        with open_file() as file:
            here, length = searched.count(file)
        count, size = count + here, size + length
        if here:
            found.append(name)
    return Traces(count, found, size, len(searched.all), shared)


def bytes_of(rows: Rows, chosen: np.ndarray) -> set[bytes]:
    """Returns the byte strings that identify rows: features, ids and file names."""
    features = {row.tobytes() for row in rows.features[chosen]}
    texts = [*rows.ids[chosen], *rows.columns["file_name"][chosen]]
    return features | {text.encode() for text in texts if text}


def stored_bytes(store: Store, ids: Sequence[str]) -> set[bytes]:
    """Returns the byte strings of rows that are not in memory: pictures, and decisions that no other row has."""
    if not ids:
        return set()
    _, table = store.read(["thumbnail", "decisions"], ids)
    made = {text for text in table["decisions"].to_pylist() if text}
    if made:
        _, others = store.read(["id", "decisions"])
        gone = set(ids)
        made -= {row["decisions"] for row in others.to_pylist() if row["id"] not in gone}
    return {picture for picture in table["thumbnail"].to_pylist() if picture} | {text.encode() for text in made}


def shared_bytes(patterns: set[bytes], rows: Rows, kept: np.ndarray) -> set[bytes]:
    """Returns the byte strings that rows still there have too: equal features, and names that are part of a name."""
    names = "\n".join(name for name in rows.columns["file_name"][kept] if name).encode()
    features = rows.features[kept]
    equal = {row.tobytes() for row in features[np.isin(features[:, 0], _first_numbers(patterns, features))]}
    return (patterns & equal) | {name for _, name in Patterns(patterns).find(names)}


def _first_numbers(patterns: set[bytes], features: np.ndarray) -> np.ndarray:
    """Returns the first number of each pattern that is as long as a feature: few rows have one of them too."""
    size = features.shape[1] * features.itemsize
    return np.array([np.frombuffer(pattern[:4], np.float32)[0] for pattern in patterns if len(pattern) == size])
