"""Sets in Market-1501's layout: a folder for each part, the person and the camera in every file's name."""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets import DatasetDict

from ...errors import UserError
from ..columns import Row, make_split
from ..counts import check_counts, count, count_parts
from ..images import safe_join
from ..problems import Problems
from .caption_sets import missing_image, read_caption_entries

logger = logging.getLogger(__name__)

DISTRACTOR = 0
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")


@dataclass(frozen=True)
class NamedFiles:
    """What tells one such set from another.

    folders: part -> its folder. archive: names of the folder that the archive unpacks to, which holds these. name: the
    whole file name, with the groups `person` and `camera`; example: one such name. published: the counts to check.
    junk: persons that are dropped at load. distractors: whether person 0 is nobody and stands in the gallery alone.
    note: what is said whenever the set is read.
    """

    source: str
    title: str
    folders: Mapping[str, str]
    archive: tuple[str, ...]
    name: re.Pattern[str]
    example: str
    published: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    junk: frozenset[int] = frozenset()
    distractors: bool = False
    note: str = ""


def read_named_files(
    spec: NamedFiles,
    data_dir: str | os.PathLike[str],
    *,
    captions_file: str | os.PathLike[str] | None = None,
    extra_gallery: str | None = None,
    strict: bool = False,
    problems: Problems | None = None,
) -> DatasetDict:
    """The parts that are there as `train`, `query` and `gallery`; query and gallery go together.

    `data_dir` holds the parts' folders, or the archive's folder that holds them; `file_name` is relative to the folder
    that holds them. Rows are sorted by file name; other files than images are no rows. captions_file: captions of the
    CUHK-PEDES schema, joined by `file_path`. extra_gallery: a folder inside, whose images join the gallery as nobody.
    The published counts are checked where the folder has the archive's name or a part its published number of
    identities, a mismatch being one warning; `strict` checks always and makes it an error. Raises UserError for a
    missing folder, another layout, an empty part, and an image whose name does not parse.
    """
    problems = problems or Problems()
    root = _root(spec, Path(data_dir))
    rows = {
        split: _read_part(spec, root, split, problems)
        for split, folder in spec.folders.items()
        if (root / folder).is_dir()
    }
    if extra_gallery is not None:
        rows.setdefault("gallery", []).extend(_extra(spec, root, extra_gallery, problems))
    if captions_file is not None:
        rows = _with_captions(rows, root, captions_file, problems)
    dataset = DatasetDict({split: make_split(part, root=root, source=spec.source) for split, part in rows.items()})
    if spec.published and extra_gallery is None and (strict or _looks_published(spec, root, dataset)):
        check_counts(count_parts(dataset), spec.published, name=spec.title, where=root, strict=strict)
    if spec.note:
        logger.warning("%s: %s", spec.title, spec.note)
    return dataset


def parse_name(spec: NamedFiles, file_name: str) -> tuple[int, int]:
    """(person_id, camera_id) of a file name of the set. Raises UserError for any other name."""
    match = spec.name.fullmatch(file_name)
    if match is None:
        raise UserError(f"{file_name}: not a name like {spec.example}: rename the file or move it away")
    return int(match["person"]), int(match["camera"])


def image_names(folder: Path) -> list[str]:
    """The names of the images in a folder, sorted, whatever case their suffix has.

    Other files are no images, and neither are hidden ones, which systems leave beside images (`._1.jpg`).
    """
    names = (entry.name for entry in os.scandir(folder))
    return sorted(name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."))


def _root(spec: NamedFiles, data_dir: Path) -> Path:
    """The folder that holds the parts."""
    folders = ", ".join(spec.folders.values())
    if not data_dir.is_dir():
        raise UserError(f"{data_dir}: no such folder: give data_dir the folder that holds {folders}")
    for root in (data_dir, *(data_dir / name for name in spec.archive)):
        present = [split for split, folder in spec.folders.items() if (root / folder).is_dir()]
        if len({"query", "gallery"} & set(present)) == 1:
            absent = spec.folders["gallery" if "query" in present else "query"]
            raise UserError(f"{root}: no folder {absent}: query and gallery are evaluated together; add it")
        if present:
            return root
    raise UserError(f"{data_dir}: not in {spec.title} layout: give data_dir the folder that holds {folders}")


def _read_part(spec: NamedFiles, root: Path, split: str, problems: Problems) -> list[Row]:
    folder = spec.folders[split]
    rows = []
    for name in image_names(root / folder):
        try:
            person_id, camera_id = parse_name(spec, name)
            if spec.distractors and person_id == DISTRACTOR and split != "gallery":
                raise UserError(f"{name}: person 0 is a distractor of the gallery: number persons from 1")
        except UserError as error:
            problems.report(UserError(f"{root / folder}/{error}"))
            continue
        if person_id not in spec.junk:
            rows.append(Row(f"{folder}/{name}", person_id, camera_id))
    if not rows:
        raise UserError(f"{root / folder}: no person image ({spec.example}) in it: restore the images or remove it")
    return rows


def _extra(spec: NamedFiles, root: Path, folder: str, problems: Problems) -> list[Row]:
    """The images of a folder as distractors; their cameras are read where their names parse."""
    if not safe_join(root, folder).is_dir():
        raise UserError(f"{root / folder}: no such folder: give the name of the distractors' folder in {root}")
    rows = []
    for name in image_names(root / folder):
        try:
            rows.append(Row(f"{folder}/{name}", DISTRACTOR, parse_name(spec, name)[1]))
        except UserError as error:
            problems.report(UserError(f"{root / folder}/{error}"))
    if not rows:
        raise UserError(f"{root / folder}: no image in it: restore the distractors or leave the option out")
    return rows


def _with_captions(
    rows: dict[str, list[Row]], root: Path, captions_file: str | os.PathLike[str], problems: Problems
) -> dict[str, list[Row]]:
    entries = read_caption_entries(captions_file, root, problems=problems)
    captions = {entry.file_name: entry.captions for entry in entries}
    joined = {
        split: [row._replace(captions=captions.get(row.file_name, ())) for row in part] for split, part in rows.items()
    }
    images = [row for part in joined.values() for row in part]
    captioned = sum(row.file_name in captions for row in images)
    if not captioned:
        raise UserError(
            f"{captions_file}: no entry names an image of {root}: write file_path like {images[0].file_name}"
        )
    for entry in entries:
        # A folder that was left out as a whole is no mistake: one file may caption more parts than are there.
        if (root / entry.file_name).parent.is_dir() and not (root / entry.file_name).is_file():
            problems.report(missing_image(captions_file, entry, root))
    if captioned < len(images):
        logger.warning("%s: %d of %d images have no entry", captions_file, len(images) - captioned, len(images))
    return joined


def _looks_published(spec: NamedFiles, root: Path, dataset: DatasetDict) -> bool:
    if os.path.basename(os.path.abspath(root)).startswith((spec.title, *spec.archive)):
        return True
    return any(
        count(part)["identities"] == spec.published[split]["identities"]
        for split, part in dataset.items()
        if split in spec.published
    )
