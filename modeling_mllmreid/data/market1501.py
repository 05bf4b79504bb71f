"""Reader of Market-1501 (Zheng et al. 2015) and of sets in its layout."""

import logging
import os
import re
from pathlib import Path

from datasets import DatasetDict

from ..errors import UserError
from .columns import Row, check_counts, count, make_split
from .cuhk_pedes import missing_image, read_caption_entries

logger = logging.getLogger(__name__)

SOURCE = "market1501"
ARCHIVE_FOLDER = "Market-1501-v15.09.15"
FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
PUBLISHED = {
    "train": {"rows": 12_936, "identities": 751},
    "query": {"rows": 3_368, "identities": 750},
    "gallery": {"rows": 15_913, "identities": 751},
}
# person, camera, sequence, frame, box
NAME = re.compile(r"(-1|[0-9]+)_c([0-9]+)s[0-9]+_[0-9]+_[0-9]+\.jpg")
JUNK, DISTRACTOR = -1, 0


def parse_name(file_name: str) -> tuple[int, int]:
    """(person_id, camera_id) of a file name such as `0002_c1s1_000451_03.jpg`. Raises UserError for any other name."""
    match = NAME.fullmatch(file_name)
    if match is None:
        raise UserError(f"{file_name}: not a name like 0002_c1s1_000451_03.jpg: rename the file or move it away")
    return int(match[1]), int(match[2])


def read_market1501(
    data_dir: str | os.PathLike[str], *, captions_file: str | os.PathLike[str] | None = None, strict: bool = False
) -> DatasetDict:
    """Market-1501 as `train`, `query` and `gallery`: those that are there; query and gallery go together.

    `data_dir` holds `bounding_box_train`, `query` and `bounding_box_test`, or `Market-1501-v15.09.15` that holds them;
    `file_name` is relative to the folder that holds them. Rows are sorted by file name. Junk (person -1) is dropped,
    distractors (person 0) stay in the gallery. captions_file: captions of the CUHK-PEDES schema, joined by `file_path`.
    The published counts are checked where the folder is named Market-1501 or a part has its published number of
    identities, a mismatch being one warning; `strict` checks always and makes it an error. Raises UserError for a
    missing folder, another layout, an empty part, and a *.jpg whose name does not parse.
    """
    root = _root(Path(data_dir))
    rows = {split: _read_part(root, split) for split, folder in FOLDERS.items() if (root / folder).is_dir()}
    if captions_file is not None:
        rows = _with_captions(rows, root, captions_file)
    dataset = DatasetDict({split: make_split(part, root=root, source=SOURCE) for split, part in rows.items()})
    if strict or _looks_published(root, dataset):
        check_counts(dataset, PUBLISHED, name="Market-1501", where=root, strict=strict)
    return dataset


def _root(data_dir: Path) -> Path:
    """The folder that holds the parts."""
    if not data_dir.is_dir():
        raise UserError(
            f"{data_dir}: no such folder: give data_dir the folder that holds {', '.join(FOLDERS.values())}"
        )
    for root in (data_dir, data_dir / ARCHIVE_FOLDER):
        present = [split for split, folder in FOLDERS.items() if (root / folder).is_dir()]
        if len({"query", "gallery"} & set(present)) == 1:
            absent = FOLDERS["gallery" if "query" in present else "query"]
            raise UserError(f"{root}: no folder {absent}: query and gallery are evaluated together; add it")
        if present:
            return root
    raise UserError(
        f"{data_dir}: not in Market-1501 layout: give data_dir the folder that holds {', '.join(FOLDERS.values())}"
    )


def _read_part(root: Path, split: str) -> list[Row]:
    folder = FOLDERS[split]
    rows = []
    for name in sorted(entry.name for entry in os.scandir(root / folder) if entry.name.endswith(".jpg")):
        try:
            person_id, camera_id = parse_name(name)
        except UserError as error:
            raise UserError(f"{root / folder}/{error}") from None
        if person_id == DISTRACTOR and split != "gallery":
            raise UserError(f"{root / folder / name}: person 0 is a distractor of the gallery: number persons from 1")
        if person_id != JUNK:
            rows.append(Row(f"{folder}/{name}", person_id, camera_id))
    if not rows:
        raise UserError(f"{root / folder}: no person image (*.jpg) in it: restore the images or remove the folder")
    return rows


def _with_captions(
    rows: dict[str, list[Row]], root: Path, captions_file: str | os.PathLike[str]
) -> dict[str, list[Row]]:
    entries = read_caption_entries(captions_file, root)
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
    for number, entry in enumerate(entries):
        # A folder that was left out as a whole is no mistake: one file may caption more parts than are there.
        if (root / entry.file_name).parent.is_dir() and not (root / entry.file_name).is_file():
            raise missing_image(captions_file, number, root / entry.file_name)
    if captioned < len(images):
        logger.warning("%s: %d of %d images have no entry", captions_file, len(images) - captioned, len(images))
    return joined


def _looks_published(root: Path, dataset: DatasetDict) -> bool:
    if os.path.basename(os.path.abspath(root)).startswith("Market-1501"):
        return True
    return any(count(part)["identities"] == PUBLISHED[split]["identities"] for split, part in dataset.items())
