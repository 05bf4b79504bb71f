"""Sidecar files of generated captions and continuations with their provenance, joined to the data at load."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from datasets import Dataset

from ..utils.data_formats import CaptionRecordLine, TextRecordLine
from ..utils.errors import UserError
from ..utils.json_files import parse_json, read_file
from .contract import FEATURES, OPTIONAL_FEATURES

# The beginning of every line, and an upper limit of its length in bytes.
LINE_START, MAX_LINE = b'{"source": ', 2**20


class TextKey(NamedTuple):
    """The key of a caption.

    Args:
        source (`str`): the data set.
        split (`str`): the split.
        file_name (`str`): the image.
        caption_index (`int`): the position among all captions of the image in the split. A split with one row per
            caption has several rows of one image.
    """

    source: str
    split: str
    file_name: str
    caption_index: int


@dataclass(frozen=True)
class CaptionOfImage:
    """The fields that both kinds of records share: the key of a caption, and its text."""

    source: str
    split: str
    file_name: str
    caption_index: int
    caption: str

    @property
    def key(self) -> TextKey:
        """Returns the key that joins the record to its caption."""
        return TextKey(self.source, self.split, self.file_name, self.caption_index)


@dataclass(frozen=True)
class TextRecord(CaptionOfImage):
    """One line of a texts sidecar: a caption, its continuation and their provenance.

    Args:
        continuation (`str`): the text that the language model wrote after the caption.
        provenance (`dict[str, Any]`): the model, its revision and licence, the instruction and the settings.
        ids (`list[int]`, *optional*): the ids that the language model wrote, with its end-of-text id. Files of earlier
            versions have none.
        tokenizer (`str`, *optional*): the digest of the tokenizer that the ids belong to.
    """

    continuation: str
    provenance: dict[str, Any]
    ids: list[int] | None = None
    tokenizer: str | None = None


@dataclass(frozen=True)
class CaptionRecord(CaptionOfImage):
    """One line of a captions sidecar: a caption that a model wrote for an image, and its provenance.

    Args:
        provenance (`dict[str, Any]`): the model, its revision and licence, the instruction and the settings.
    """

    provenance: dict[str, Any]


Record = TypeVar("Record", TextRecord, CaptionRecord)


def is_sidecar(path: Path, kind: type[Record]) -> bool:
    """Returns whether a file contains only records of one kind.

    Args:
        path (`Path`): an existing file. Its last line may be incomplete.
        kind (`type`): `TextRecord` or `CaptionRecord`.

    Returns:
        `bool`: whether all complete lines are records of this kind.
    """
    content = path.read_bytes()
    try:
        _parse_records(content, kind, where=str(path))
    except UserError:
        return False
    return _incomplete_bytes(content) is not None


def append_records(path: str | os.PathLike[str], records: Iterable[TextRecord | CaptionRecord]) -> None:
    """Appends records and waits until they are on disk. It first removes an incomplete last line of a killed run.

    Only the owner can read a new file.

    Args:
        path (`str` or `os.PathLike`): the sidecar.
        records (`Iterable[TextRecord | CaptionRecord]`): the records to append.

    Raises:
        UserError: the file ends in a line that is not a record. The file is not changed.
    """
    lines = "".join(
        json.dumps({name: value for name, value in asdict(record).items() if value is not None}) + "\n"
        for record in records
    ).encode()
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "rb+") as file:
        end = file.seek(0, os.SEEK_END)
        # The end of a long sidecar is enough, because every record is much shorter than this limit.
        file.seek(max(end - MAX_LINE, 0))
        incomplete = _incomplete_bytes(file.read())
        if incomplete is None:
            raise UserError(f"{path}: ends in a line that is not a record: give another file, or remove the line")
        file.truncate(end - incomplete)
        file.write(lines)
        file.flush()
        os.fsync(file.fileno())


def _incomplete_bytes(content: bytes) -> int | None:
    """Returns the length of an incomplete last line, or 0; None if this line is not the start of a record."""
    last = content.rpartition(b"\n")[2]
    return len(last) if last.startswith(LINE_START[: len(last)]) else None


def read_records(
    path: str | os.PathLike[str],
    kind: type[Record] = TextRecord,  # type: ignore[assignment]
) -> list[Record]:
    """Reads the records of a sidecar. It ignores an incomplete last line of a killed run.

    Args:
        path (`str` or `os.PathLike`): the sidecar.
        kind (`type`, defaults to `TextRecord`): `TextRecord` or `CaptionRecord`.

    Returns:
        `list[TextRecord]` or `list[CaptionRecord]`: the records in the order of the file.

    Raises:
        UserError: the file cannot be read, a line is not a record of this kind, or two records of one caption differ.
            The message gives the line, counted from 1.
    """
    content = read_file(path, remedy="give the texts file's path")
    return _parse_records(content, kind, where=str(path))


def _parse_records(content: bytes, kind: type[Record], *, where: str) -> list[Record]:
    """Parses the complete lines. Raises UserError for a line that is not a record of this kind."""
    records: dict[TextKey, Record] = {}
    names = [field.name for field in fields(kind)]
    line_format = TextRecordLine if kind is TextRecord else CaptionRecordLine
    for number, line in enumerate(content.split(b"\n")[:-1], start=1):
        values = parse_json(
            line, line_format, where=f"{where}: line {number} is not a record", remedy="remove the line"
        )
        if kind is CaptionRecord and "continuation" in (values.model_extra or {}):
            raise UserError(
                f"{where}: line {number} is a continuation, not a caption: give the file of the command caption"
            )
        record = kind(**{name: getattr(values, name) for name in names})
        if records.setdefault(record.key, record) != record:
            raise UserError(
                f"{where}: line {number} repeats {_display_key(record.key)} with another text: remove one of the lines"
            )
    return list(records.values())


def caption_keys(dataset: Dataset, split: str) -> Iterator[list[tuple[TextKey, str]]]:
    """Yields the captions of each row with their keys.

    Args:
        dataset (`Dataset`): a split of the data contract.
        split (`str`): the name of the split.

    Returns:
        `Iterator[list[tuple[TextKey, str]]]`: for each row, (key, caption) pairs.
    """
    seen: Counter[tuple[str, str]] = Counter()
    columns = (dataset[name][:] for name in ("source", "file_name", "caption"))
    for source, file_name, captions in zip(*columns, strict=True):
        start = seen[source, file_name]
        seen[source, file_name] += len(captions)
        yield [(TextKey(source, split, file_name, start + i), caption) for i, caption in enumerate(captions)]


def join_captions(dataset: Dataset, split: str, records: Iterable[CaptionRecord]) -> Dataset:
    """Fills the column `caption` of a split with generated captions.

    Args:
        dataset (`Dataset`): a split of the data contract.
        split (`str`): the name of the split.
        records (`Iterable[CaptionRecord]`): captions of this and of other splits.

    Returns:
        `Dataset`: the split. The captions of an image are in the order of `caption_index`.

    Raises:
        UserError: an image has captions of its own.
    """
    generated: dict[tuple[str, str], list[CaptionRecord]] = defaultdict(list)
    for record in records:
        if record.split == split:
            generated[record.source, record.file_name].append(record)
    joined = []
    for source, file_name, captions in zip(*(dataset[n][:] for n in ("source", "file_name", "caption")), strict=True):
        image_records = sorted(generated.get((source, file_name), []), key=lambda record: record.caption_index)
        if captions and image_records:
            raise UserError(f"{file_name} ({source}, {split}) has captions already: leave the generated ones out")
        joined.append(captions or [record.caption for record in image_records])
    filled = dataset.remove_columns("caption").add_column("caption", joined, feature=FEATURES["caption"])
    return filled.select_columns(dataset.column_names)


def missing_captions(dataset: Dataset, split: str, records: Iterable[TextRecord]) -> list[tuple[TextKey, str]]:
    """Returns the captions without a record, which a resumed run still has to write.

    Args:
        dataset (`Dataset`): a split of the data contract.
        split (`str`): the name of the split.
        records (`Iterable[TextRecord]`): the records that exist.

    Returns:
        `list[tuple[TextKey, str]]`: (key, caption) pairs in the order of the data set.

    Raises:
        UserError: the caption of a record differs from the caption in the data set.
    """
    by_key = {record.key: record for record in records}
    pairs = [pair for row in caption_keys(dataset, split) for pair in row]
    return [(key, caption) for key, caption in pairs if _record(by_key, key, caption) is None]


def join_continuations(dataset: Dataset, split: str, records: Iterable[TextRecord]) -> Dataset:
    """Fills the column `continuation` of a split, one continuation per caption.

    If the records have ids, the columns `continuation_ids` and `continuation_tokenizer` are added: the ids of each
    continuation, and the digest of their tokenizer. A continuation without ids has none and "".

    Args:
        dataset (`Dataset`): a split of the data contract.
        split (`str`): the name of the split.
        records (`Iterable[TextRecord]`): continuations of this and of other splits.

    Returns:
        `Dataset`: the split; the same object if it has no record.

    Raises:
        UserError: the caption of a record differs from the caption in the data set, or some captions have no record.
    """
    by_key = {record.key: record for record in records if record.split == split}
    keyed = list(caption_keys(dataset, split))
    joined = [[_record(by_key, key, caption) for key, caption in row] for row in keyed]
    found = [record for row in joined for record in row if record is not None]
    if not found:
        return dataset
    missing = [key for row in keyed for key, _ in row if key not in by_key]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(found) + len(missing)} captions have no continuation, first "
            f"{_display_key(missing[0])}: run the continuations command again, it writes the rest"
        )
    rows = [[record for record in row if record is not None] for row in joined]
    columns: dict[str, list[Any]] = {"continuation": [[record.continuation for record in row] for row in rows]}
    if any(record.ids for record in found):
        columns["continuation_ids"] = [[record.ids or [] for record in row] for row in rows]
        columns["continuation_tokenizer"] = [[record.tokenizer or "" for record in row] for row in rows]
    names = [*dataset.column_names, *(name for name in columns if name not in dataset.column_names)]
    for name, values in columns.items():
        without = dataset.remove_columns(name) if name in dataset.column_names else dataset
        dataset = without.add_column(name, values, feature={**FEATURES, **OPTIONAL_FEATURES}[name])
    return dataset.select_columns(names)


def _record(by_key: dict[TextKey, TextRecord], key: TextKey, caption: str) -> TextRecord | None:
    """Returns the record of a caption, or None. Raises UserError if it has another caption."""
    record = by_key.get(key)
    if record is not None and record.caption != caption:
        raise UserError(
            f"the text of {_display_key(key)} is outdated, its caption was {record.caption[:60]!r} and is "
            f"{caption[:60]!r} now: write the continuations again"
        )
    return record


def _display_key(key: TextKey) -> str:
    """Returns a key for a message."""
    return f"caption {key.caption_index} of {key.file_name} ({key.source}, {key.split})"


def provenances_of_texts(captions_file: str | None, texts: str | None) -> list[dict[str, Any]]:
    """Returns the provenances of generated captions and continuations.

    Args:
        captions_file (`str`, *optional*): the file of captions. Only a `.jsonl` file has generated ones.
        texts (`str`, *optional*): the file of continuations.

    Returns:
        `list[dict[str, Any]]`: one provenance per record.
    """
    provenances: list[dict[str, Any]] = []
    if captions_file and captions_file.endswith(".jsonl"):
        provenances += [record.provenance for record in read_records(captions_file, CaptionRecord)]
    if texts:
        provenances += [record.provenance for record in read_records(texts)]
    return provenances
