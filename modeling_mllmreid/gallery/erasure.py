"""Traces: how often the bytes of erased rows occur in the files of a gallery."""

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


def bytes_of(rows: Rows, chosen: np.ndarray) -> set[bytes]:
    """Returns the byte strings that identify rows: features, ids and file names."""
    features = {row.tobytes() for row in rows.features[chosen]}
    texts = [*rows.ids[chosen], *rows.columns["file_name"][chosen]]
    return features | {text.encode() for text in texts if text}


def shared_bytes(patterns: set[bytes], rows: Rows, kept: np.ndarray) -> set[bytes]:
    """Returns the byte strings that rows still there have too: equal features, and names that are part of a name."""
    names = "\n".join(name for name in rows.columns["file_name"][kept] if name).encode()
    equal = patterns & bytes_of(rows, kept)
    texts = {name.encode() for name in rows.columns["file_name"][~kept] if name}
    return equal | {text for text in texts if text in names}


def find_traces(patterns: set[bytes], files: Iterable[tuple[str, Callable[[], bytes]]], shared: int = 0) -> Traces:
    """Counts the occurrences of byte strings in files.

    Args:
        patterns (`set[bytes]`): Byte strings of any length above 0.
        files (`Iterable`): Name of each file, and a function that reads it.
        shared (`int`): Byte strings that were left out, for the report.

    Returns:
        [`Traces`]
    """
    short = sorted(pattern for pattern in patterns if len(pattern) < SHORTEST)
    words, owners, offsets = _words([pattern for pattern in patterns if len(pattern) >= SHORTEST])
    count, found, size = 0, [], 0
    for name, read in files:
        content = read()
        size += len(content)
        here = sum(content.count(pattern) for pattern in short) + _count(content, words, owners, offsets)
        count += here
        if here:
            found.append(name)
    return Traces(count, found, size, len(patterns), shared)


def _words(patterns: list[bytes]) -> tuple[np.ndarray, list[bytes], np.ndarray]:
    """Returns the words at the first eight places of each pattern, sorted, with their patterns and places."""
    entries = sorted(
        (int.from_bytes(pattern[offset : offset + WORD], "little"), pattern, offset)
        for pattern in patterns
        for offset in range(WORD)
    )
    words = np.array([word for word, _, _ in entries], dtype=np.uint64)
    return words, [pattern for _, pattern, _ in entries], np.array([offset for *_, offset in entries], dtype=np.int64)


def _count(content: bytes, words: np.ndarray, owners: list[bytes], offsets: np.ndarray) -> int:
    """Counts the occurrences of the patterns. Every aligned word of the content is looked up once."""
    whole = len(content) // WORD
    if not len(words) or not whole:
        return 0
    aligned = np.frombuffer(content, dtype="<u8", count=whole)
    places: set[tuple[int, bytes]] = set()
    step = CHUNK_BYTES // WORD
    for start in range(0, whole, step):
        chunk = aligned[start : start + step]
        first = np.searchsorted(words, chunk)
        hits = np.flatnonzero(words[np.minimum(first, len(words) - 1)] == chunk)
        for hit in hits:
            entry = int(first[hit])
            while entry < len(words) and words[entry] == chunk[hit]:
                begin = (start + int(hit)) * WORD - int(offsets[entry])
                pattern = owners[entry]
                if begin >= 0 and content[begin : begin + len(pattern)] == pattern:
                    places.add((begin, pattern))
                entry += 1
    return len(places)
