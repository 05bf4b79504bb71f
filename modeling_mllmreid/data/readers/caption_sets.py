"""CUHK-PEDES, ICFG-PEDES and RSTPReid: data sets for text-based person search, and the parser of captions files.

    data_dir/reid_raw.json      CUHK-PEDES    split, captions, file_path, id;  images under data_dir/imgs/
    data_dir/ICFG-PEDES.json    ICFG-PEDES    split, captions, file_path, id;  images under data_dir/imgs/
    data_dir/data_captions.json RSTPReid      split, captions, img_path, id;   images under data_dir/imgs/
The images may also be directly in data_dir.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from datasets import DatasetDict

from ...utils.data_formats import CaptionEntryFields
from ...utils.errors import UserError
from ...utils.json_files import check_content, read_json
from ..contract import UNKNOWN_CAMERA, Problems, Sample, check_counts, count_split, count_splits, make_split
from .file_names import JPG, DataFolder, SpelledNumbers, shown_path

MAX_CAPTION = 5000


@dataclass(frozen=True)
class CaptionSet:
    """The layout of one data set.

    Args:
        source (`str`): the reader's name.
        title (`str`): the published name.
        json_name (`str`): the captions file.
        path_key (`str`): the field of the captions file with the path of the image.
        camera (`re.Pattern`, *optional*): the pattern of a file name that contains the camera.
        published (`Counts`): the published counts of each split.
    """

    source: str
    title: str
    json_name: str
    path_key: str = "file_path"
    camera: re.Pattern[str] | None = None
    published: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


CUHK_PEDES = CaptionSet(
    source="cuhk_pedes",
    title="CUHK-PEDES",
    json_name="reid_raw.json",
    published={
        "train": {"samples": 34_054, "identities": 11_003, "captions": 68_126},
        "val": {"samples": 3_078, "identities": 1_000, "captions": 6_158},
        "query": {"samples": 6_156, "identities": 1_000},
        "gallery": {"samples": 3_074, "identities": 1_000},
    },
)
ICFG_PEDES = CaptionSet(
    source="icfg_pedes",
    title="ICFG-PEDES",
    json_name="ICFG-PEDES.json",
    published={
        "train": {"samples": 34_674, "identities": 3_102},
        "query": {"samples": 19_848, "identities": 1_000},
        "gallery": {"samples": 19_848, "identities": 1_000},
    },
)
RSTPREID = CaptionSet(
    source="rstpreid",
    title="RSTPReid",
    json_name="data_captions.json",
    path_key="img_path",
    camera=re.compile(rf"[0-9]+_c(?P<camera>[0-9]+)_[0-9]+{JPG}"),
    published={
        "train": {"samples": 18_505, "identities": 3_701, "captions": 37_010},
        "val": {"identities": 200},
        "query": {"samples": 2_000, "identities": 200},
        "gallery": {"samples": 1_000, "identities": 200},
    },
)


class CaptionEntry(NamedTuple):
    """One entry of a captions file. number: its position, from 0. file_name: its path with forward slashes."""

    number: int
    split: str
    captions: tuple[str, ...]
    file_name: str
    person_id: int


def read_caption_entries(
    json_path: str | os.PathLike[str],
    files: DataFolder,
    *,
    path_key: str = "file_path",
    problems: Problems | None = None,
) -> list[CaptionEntry]:
    """Reads the entries of a captions file. The field `processed_tokens` is not needed.

    An image may have any number of captions, including none and equal ones. The function does not check that the
    images exist.

    Args:
        json_path (`str` or `os.PathLike`): the captions file.
        files (`DataFolder`): the folder of the images. No path may leave it.
        path_key (`str`, defaults to `"file_path"`): the field with the path of the image.
        problems (`Problems`, *optional*): collects the entries that cannot be used.

    Returns:
        `list[CaptionEntry]`: the entries in the order of the file.

    Raises:
        UserError: a field is missing, empty or repeated, or has another type. The message gives the entry, counted
            from 0.
    """
    problems = problems or Problems()
    content = read_json(json_path, list[Any], remedy="give a JSON list of entries of the CUHK-PEDES schema")
    if not content:
        raise UserError(f"{json_path}: an empty list: give a JSON list of entries of the CUHK-PEDES schema")
    entries: list[CaptionEntry] = []
    numbers: dict[str, int] = {}
    for number, fields in enumerate(content):
        try:
            entry = _parse_entry(fields, number, f"{json_path}: entry {number}", files, path_key)
            first = numbers.setdefault(entry.file_name, number)
            if first != number:
                raise UserError(
                    f"{json_path}: entry {number}, field {path_key!r}: {entry.file_name} is entry {first} already: "
                    "put all captions of an image into one entry"
                )
        except UserError as problem:
            problems.report(problem)
            continue
        entries.append(entry)
    return entries


def _parse_entry(fields: Any, number: int, where: str, files: DataFolder, path_key: str) -> CaptionEntry:
    """Checks and converts one entry. Raises UserError that names the field."""
    entry = check_content(fields, CaptionEntryFields, where=where, remedy="correct the entry")
    listed = fields.get(path_key)
    if not isinstance(listed, str):
        raise UserError(f"{where}, field {path_key!r}: {_describe_type(listed)}: give the image's path")
    if not all(caption.strip() for caption in entry.captions):
        raise UserError(f"{where}, field 'captions': one is an empty text: correct or remove it")
    longest = max(map(len, entry.captions), default=0)
    if longest >= MAX_CAPTION:
        raise UserError(f"{where}, field 'captions': one has {longest:,} characters: give fewer than {MAX_CAPTION:,}")
    try:
        file_name = files.relative(listed)
    except UserError as error:
        raise UserError(f"{where}, field {path_key!r}: {error}") from None
    return CaptionEntry(number, entry.split, tuple(entry.captions), file_name, entry.id)


def _describe_type(value: Any) -> str:
    """Returns what is wrong with a value that is not a text."""
    return "is missing" if value is None else f"is of type {type(value).__name__}"


def missing_image(
    json_path: str | os.PathLike[str], entry: CaptionEntry, root: Path, path_key: str = "file_path"
) -> UserError:
    """Returns the error of an entry whose image does not exist."""
    where = f"{json_path}: entry {entry.number}, field {path_key!r}"
    image = shown_path(f"{root}/{entry.file_name}")
    return UserError(f"{where}: there is no image {image}: restore it or remove the entry")


def read_caption_set(
    spec: CaptionSet,
    data_dir: str | os.PathLike[str],
    *,
    json_name: str | None = None,
    strict: bool = False,
    problems: Problems | None = None,
) -> DatasetDict:
    """Reads `train`, `val`, and from the entries of the split test `gallery` (per image) and `query` (per caption).

    The image of a query is the one that its caption describes. The camera is -1 if the data set has no cameras. Splits
    without entries are left out. The published counts are checked if the folder has the name of the data set or the
    published number of training identities.

    Args:
        spec (`CaptionSet`): the layout.
        data_dir (`str` or `os.PathLike`): the folder of the captions file and the images.
        json_name (`str`, *optional*): another name of the captions file.
        strict (`bool`, defaults to `False`): always check the counts, and raise and not warn if they differ.
        problems (`Problems`, *optional*): collects the entries that cannot be used.

    Returns:
        `DatasetDict`: the splits.

    Raises:
        UserError: the layout or an entry is wrong, or an image is missing.
    """
    data_dir, problems = Path(data_dir), problems or Problems()
    json_path = data_dir / (json_name or spec.json_name)
    if not os.path.isfile(json_path):
        raise UserError(f"{data_dir}: no file {json_path.name}: give data_dir the folder with this file and imgs/")
    root = data_dir / "imgs" if os.path.isdir(data_dir / "imgs") else data_dir
    files, cameras = DataFolder(root), SpelledNumbers("camera")
    samples: dict[str, list[Sample]] = {"train": [], "val": [], "query": [], "gallery": []}
    for entry in read_caption_entries(json_path, files, path_key=spec.path_key, problems=problems):
        try:
            if not files.has(entry.file_name):
                raise missing_image(json_path, entry, root, spec.path_key)
            camera_id = _camera(spec, entry, cameras, f"{json_path}: entry {entry.number}")
        except UserError as problem:
            problems.report(problem)
            continue
        sample = Sample(entry.file_name, entry.person_id, camera_id, captions=entry.captions)
        samples["gallery" if entry.split == "test" else entry.split].append(sample)
        if entry.split == "test":
            samples["query"] += [sample._replace(captions=(caption,)) for caption in entry.captions]
    if not any(samples.values()):
        raise UserError(f"{json_path}: no entry can be used: correct the file")
    dataset = DatasetDict(
        {name: make_split(split, root=root, source=spec.source) for name, split in samples.items() if split}
    )
    if "gallery" in dataset and "query" not in dataset:
        raise UserError(f"{json_path}: no entry of split 'test' has a caption, so there is no query: add captions")
    if strict or _looks_published(spec, data_dir, dataset):
        check_counts(count_splits(dataset), spec.published, name=spec.title, where=data_dir, strict=strict)
    return dataset


def read_cuhk_pedes(
    data_dir: str | os.PathLike[str],
    *,
    json_name: str | None = None,
    strict: bool = False,
    problems: Problems | None = None,
) -> DatasetDict:
    """Reads CUHK-PEDES (Li et al. 2017). Args, Returns and Raises: see `read_caption_set`."""
    return read_caption_set(CUHK_PEDES, data_dir, json_name=json_name, strict=strict, problems=problems)


def read_icfg_pedes(
    data_dir: str | os.PathLike[str],
    *,
    json_name: str | None = None,
    strict: bool = False,
    problems: Problems | None = None,
) -> DatasetDict:
    """Reads ICFG-PEDES (Ding et al. 2021): images of MSMT17, one caption each. Arguments: see `read_caption_set`."""
    return read_caption_set(ICFG_PEDES, data_dir, json_name=json_name, strict=strict, problems=problems)


def read_rstpreid(
    data_dir: str | os.PathLike[str],
    *,
    json_name: str | None = None,
    strict: bool = False,
    problems: Problems | None = None,
) -> DatasetDict:
    """Reads RSTPReid (Zhu et al. 2021): images of MSMT17 with cameras. Arguments: see `read_caption_set`."""
    return read_caption_set(RSTPREID, data_dir, json_name=json_name, strict=strict, problems=problems)


def _camera(spec: CaptionSet, entry: CaptionEntry, cameras: SpelledNumbers, where: str) -> int:
    """Returns the camera in the image's name, or -1 if the data set has none."""
    if spec.camera is None:
        return UNKNOWN_CAMERA
    match = spec.camera.fullmatch(PurePosixPath(entry.file_name).name)
    if match is None:
        raise UserError(f"{where}: {shown_path(entry.file_name)} contains no camera: restore the name")
    return cameras.read(match["camera"], where)


def _looks_published(spec: CaptionSet, data_dir: Path, dataset: DatasetDict) -> bool:
    """Returns whether the folder's name or the number of training identities are the published ones."""
    has_published_name = os.path.basename(os.path.abspath(data_dir)).upper() == spec.title.upper()
    identities = spec.published["train"]["identities"]
    return has_published_name or ("train" in dataset and count_split(dataset["train"])["identities"] == identities)
