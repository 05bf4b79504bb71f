"""Reader of CUHK-PEDES (Li et al. 2017), and the one parser of its captions file `reid_raw.json`."""

import json
import os
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from datasets import DatasetDict

from ..errors import UserError
from .columns import Row, check_counts, count, make_split
from .images import safe_join

SOURCE = "cuhk_pedes"
PUBLISHED = {
    "train": {"rows": 34_054, "identities": 11_003, "captions": 68_126},
    "val": {"rows": 3_078, "identities": 1_000, "captions": 6_158},
    "query": {"rows": 6_156, "identities": 1_000},
    "gallery": {"rows": 3_074, "identities": 1_000},
}
FIELDS: dict[str, type] = {"split": str, "captions": list, "file_path": str, "id": int}


class CaptionEntry(NamedTuple):
    """One entry of a captions file. file_name: its `file_path` with forward slashes and no empty parts."""

    split: str
    captions: tuple[str, ...]
    file_name: str
    person_id: int


def read_caption_entries(json_path: str | os.PathLike[str], root: str | os.PathLike[str]) -> list[CaptionEntry]:
    """The entries of a captions file of the CUHK-PEDES schema, in its order; `processed_tokens` is not needed.

    Every `file_path` is held inside `root`; whether the image exists is the caller's question. Raises UserError naming
    the entry (counted from 0, as JSON readers do) and the field that is missing, of another type, empty or repeated.
    """
    try:
        content = json.loads(Path(json_path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{json_path}: cannot be read ({error.strerror}): give the captions file's path") from error
    except ValueError as error:
        raise UserError(f"{json_path}: not a JSON file ({error}): restore it") from error
    if not isinstance(content, list) or not content:
        raise UserError(f"{json_path}: not a JSON list of entries: give a file of the CUHK-PEDES schema")
    entries: list[CaptionEntry] = []
    numbers: dict[str, int] = {}
    for number, fields in enumerate(content):
        entry = _entry(fields, f"{json_path}: entry {number}", root)
        first = numbers.setdefault(entry.file_name, number)
        if first != number:
            raise UserError(
                f"{json_path}: entry {number}, field 'file_path': {entry.file_name} is entry {first} already: "
                "put all captions of an image into one entry"
            )
        entries.append(entry)
    return entries


def _entry(fields: Any, where: str, root: str | os.PathLike[str]) -> CaptionEntry:
    if not isinstance(fields, dict):
        raise UserError(f"{where} is not an object: give one with {', '.join(FIELDS)}")
    for field, kind in FIELDS.items():
        if field not in fields:
            raise UserError(f"{where} has no field {field!r}: add it")
        if not isinstance(fields[field], kind) or isinstance(fields[field], bool):
            found = type(fields[field]).__name__
            raise UserError(f"{where}, field {field!r} is of type {found}: give {kind.__name__}")
    if fields["split"] not in ("train", "val", "test"):
        raise UserError(f"{where}, field 'split': {fields['split']!r} is unknown: give train, val or test")
    if not all(isinstance(caption, str) and caption.strip() for caption in fields["captions"]):
        raise UserError(f"{where}, field 'captions': not all are texts with words: mend or remove the others")
    try:
        safe_join(root, fields["file_path"])
    except UserError as error:
        raise UserError(f"{where}, field 'file_path': {error}") from None
    file_name = PurePosixPath(fields["file_path"]).as_posix()
    return CaptionEntry(fields["split"], tuple(fields["captions"]), file_name, fields["id"])


def missing_image(json_path: str | os.PathLike[str], number: int, path: Path) -> UserError:
    """The error of an entry, counted from 0, whose image is not there."""
    return UserError(
        f"{json_path}: entry {number}, field 'file_path': there is no image {path}: restore it or remove the entry"
    )


def read_cuhk_pedes(
    data_dir: str | os.PathLike[str], *, json_name: str = "reid_raw.json", strict: bool = False
) -> DatasetDict:
    """CUHK-PEDES as `train`, `val`, and from its test part `gallery` (a row an image) and `query` (a row a caption).

    The images lie under `imgs/` or directly in `data_dir`; a query row's image is the one that its caption describes.
    Cameras are unknown (-1). Splits without entries are left out. The published counts are checked where the folder is
    named CUHK-PEDES or has the published number of training identities, a mismatch being one warning; `strict` checks
    always and makes it an error. Raises UserError for a wrong layout, a wrong entry, and an image that is missing.
    """
    data_dir = Path(data_dir)
    json_path = data_dir / json_name
    if not json_path.is_file():
        raise UserError(f"{data_dir}: no file {json_name}: give data_dir the folder that holds it and imgs/")
    root = data_dir / "imgs" if (data_dir / "imgs").is_dir() else data_dir
    rows: dict[str, list[Row]] = {"train": [], "val": [], "query": [], "gallery": []}
    for number, entry in enumerate(read_caption_entries(json_path, root)):
        if not (root / entry.file_name).is_file():
            raise missing_image(json_path, number, root / entry.file_name)
        row = Row(entry.file_name, entry.person_id, captions=entry.captions)
        rows["gallery" if entry.split == "test" else entry.split].append(row)
        if entry.split == "test":
            rows["query"] += [row._replace(captions=(caption,)) for caption in entry.captions]
    dataset = DatasetDict({name: make_split(part, root=root, source=SOURCE) for name, part in rows.items() if part})
    if "gallery" in dataset and "query" not in dataset:
        raise UserError(
            f"{json_path}: no entry of split 'test' has a caption: nothing can be searched for; add captions"
        )
    if strict or _looks_published(data_dir, dataset):
        check_counts(dataset, PUBLISHED, name="CUHK-PEDES", where=data_dir, strict=strict)
    return dataset


def _looks_published(data_dir: Path, dataset: DatasetDict) -> bool:
    named_so = os.path.basename(os.path.abspath(data_dir)).upper() == "CUHK-PEDES"
    return named_so or ("train" in dataset and count(dataset["train"])["identities"] == 11_003)
