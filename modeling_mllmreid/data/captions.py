"""The sidecar `texts.jsonl`: continuations written for captions, kept with their provenance and joined at load."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from datasets import Dataset

from ..utils.errors import UserError
from ..utils.formats import CaptionRecordLine, TextRecordLine
from ..utils.json_files import parse_json, read_file
from .contract import FEATURES

# How every line begins, and more bytes than any has.
BEGINNING, MAX_LINE = b'{"source": ', 2**20


class TextKey(NamedTuple):
    """What a continuation belongs to. caption_index: the caption's place among all captions that the split has of that
    file, over all its rows (a split with a row for each caption has several rows of one file)."""

    source: str
    split: str
    file_name: str
    caption_index: int


@dataclass(frozen=True)
class CaptionOfImage:
    """What both kinds of records begin with: an image, the caption's place among its captions, and the caption."""

    source: str
    split: str
    file_name: str
    caption_index: int
    caption: str

    @property
    def key(self) -> TextKey:
        """The key that joins the record to its caption."""
        return TextKey(self.source, self.split, self.file_name, self.caption_index)


@dataclass(frozen=True)
class TextRecord(CaptionOfImage):
    """One line of the sidecar: a caption, its continuation and provenance (model, revision, instruction, settings)."""

    continuation: str
    provenance: dict[str, Any]


@dataclass(frozen=True)
class CaptionRecord(CaptionOfImage):
    """One line of a captions sidecar: a caption that a model wrote for an image, and its provenance."""

    provenance: dict[str, Any]


Record = TypeVar("Record", TextRecord, CaptionRecord)


def is_sidecar(path: Path, kind: type[Record]) -> bool:
    """Whether an existing file holds records of this kind and nothing else, a torn last line included."""
    content = path.read_bytes()
    try:
        _parsed(content, kind, where=str(path))
    except UserError:
        return False
    return _torn(content) is not None


def append_records(path: str | os.PathLike[str], records: Iterable[TextRecord | CaptionRecord]) -> None:
    """Appends whole lines and waits until they are on disk; what a killed run left of a last line is cut off first.

    A new file is its owner's alone. Raises UserError, and changes nothing, where the file ends in anything else.
    """
    lines = "".join(json.dumps(asdict(record)) + "\n" for record in records).encode()
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        # A record is shorter than this by far, and a sidecar may be long.
        file.seek(max(end - MAX_LINE, 0))
        torn = _torn(file.read())
        if torn is None:
            raise UserError(f"{path}: ends in a line that is no record: give another file, or remove the line")
        file.truncate(end - torn)
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _torn(content: bytes) -> int | None:
    """The length of a last line that a kill cut off, 0 for whole lines; None where it is no beginning of a record."""
    last = content.rpartition(b"\n")[2]
    return len(last) if last.startswith(BEGINNING[: len(last)]) else None


def read_records(
    path: str | os.PathLike[str],
    kind: type[Record] = TextRecord,  # type: ignore[assignment]
) -> list[Record]:
    """The sidecar's records, of this kind, in file order.

    A last line without its line end was torn by a kill and does not count.
    Raises UserError naming the file, and the line (from 1) that is no record or gives a caption another continuation.
    """
    content = read_file(path, remedy="give the texts file's path")
    return _parsed(content, kind, where=str(path))


def _parsed(content: bytes, kind: type[Record], *, where: str) -> list[Record]:
    """The records of whole lines."""
    records: dict[TextKey, Record] = {}
    names = [field.name for field in fields(kind)]
    of_line = TextRecordLine if kind is TextRecord else CaptionRecordLine
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        values = parse_json(line, of_line, where=f"{where}: line {number} is no record", remedy="remove the line")
        if kind is CaptionRecord and "continuation" in (values.model_extra or {}):
            raise UserError(
                f"{where}: line {number} is a continuation, not a caption: give the file that caption wrote"
            )
        record = kind(**{name: getattr(values, name) for name in names})
        if records.setdefault(record.key, record) != record:
            raise UserError(
                f"{where}: line {number} repeats {_named(record.key)} otherwise: remove one of the two lines"
            )
    return list(records.values())


def caption_keys(dataset: Dataset, split: str) -> Iterator[list[tuple[TextKey, str]]]:
    """Sample by row, the row's captions with their keys. split: the name of the split that `dataset` is."""
    seen: Counter[tuple[str, str]] = Counter()
    columns = (dataset[name][:] for name in ("source", "file_name", "caption"))
    for source, file_name, captions in zip(*columns, strict=True):
        start = seen[source, file_name]
        seen[source, file_name] += len(captions)
        yield [(TextKey(source, split, file_name, start + i), caption) for i, caption in enumerate(captions)]


def join_captions(dataset: Dataset, split: str, records: Iterable[CaptionRecord]) -> Dataset:
    """The split with the captions that were written for its images, in their order, where it has none of its own.

    Raises UserError for an image that has captions already.
    """
    written: dict[tuple[str, str], list[CaptionRecord]] = defaultdict(list)
    for record in records:
        if record.split == split:
            written[record.source, record.file_name].append(record)
    joined = []
    for source, file_name, captions in zip(*(dataset[n][:] for n in ("source", "file_name", "caption")), strict=True):
        of_image = sorted(written.get((source, file_name), []), key=lambda record: record.caption_index)
        if captions and of_image:
            raise UserError(f"{file_name} ({source}, {split}) has captions already: leave the written ones out")
        joined.append(captions or [record.caption for record in of_image])
    filled = dataset.remove_columns("caption").add_column("caption", joined, feature=FEATURES["caption"])
    return filled.select_columns(dataset.column_names)


def missing_captions(dataset: Dataset, split: str, records: Iterable[TextRecord]) -> list[tuple[TextKey, str]]:
    """The captions that have no record yet, in the data set's order: what a resumed run has left to write.

    Raises UserError where a record was written for another caption text than the data set has now.
    """
    by_key = {record.key: record for record in records}
    pairs = [pair for row in caption_keys(dataset, split) for pair in row]
    return [(key, caption) for key, caption in pairs if _continuation(by_key, key, caption) is None]


def join_continuations(dataset: Dataset, split: str, records: Iterable[TextRecord]) -> Dataset:
    """The data set with `continuation` filled, each beside its caption; unchanged where the split has no record at all.

    Raises UserError where a caption's text changed since its record was written, and where only some have a record.
    """
    by_key = {record.key: record for record in records if record.split == split}
    keyed = list(caption_keys(dataset, split))
    joined = [[_continuation(by_key, key, caption) for key, caption in row] for row in keyed]
    found = sum(text is not None for row in joined for text in row)
    if not found:
        return dataset
    missing = [key for row in keyed for key, _ in row if key not in by_key]
    if missing:
        raise UserError(
            f"{len(missing)} of {found + len(missing)} captions have no continuation, first {_named(missing[0])}: "
            "run the continuations command again, it writes the rest"
        )
    filled = dataset.remove_columns("continuation").add_column("continuation", joined, feature=FEATURES["continuation"])
    return filled.select_columns(dataset.column_names)


def _continuation(by_key: dict[TextKey, TextRecord], key: TextKey, caption: str) -> str | None:
    record = by_key.get(key)
    if record is None:
        return None
    if record.caption != caption:
        raise UserError(
            f"the text of {_named(key)} is stale, its caption was {record.caption[:60]!r} and is {caption[:60]!r} now: "
            "write the continuations anew"
        )
    return record.continuation


def _named(key: TextKey) -> str:
    return f"caption {key.caption_index} of {key.file_name} ({key.source}, {key.split})"


def provenances_of_texts(captions_file: str | None, texts: str | None) -> list[dict[str, Any]]:
    """How generated captions and continuations were written; nothing where they are not generated, or not there."""
    found: list[dict[str, Any]] = []
    if captions_file and captions_file.endswith(".jsonl"):
        found += [record.provenance for record in read_records(captions_file, CaptionRecord)]
    if texts:
        found += [record.provenance for record in read_records(texts)]
    return found
