"""The ten splits of the small sets as torchreid wrote them, for results that compare with those on the same file.

    splits.json              VIPeR, iLIDS: a list of {"train", "query", "gallery"}, each the images of that part, an
                             image being its name or path, alone or first in a list
    splits_single_shot.json  PRID: a list of {"train", "test"}, each the persons of that part
The file lies beside the set's folder or in it.
"""

import os
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import TypeVar

from ...errors import UserError
from ...formats import TorchreidImageSplit, TorchreidPersonSplit, read_json
from ..columns import Row

NAMES = ("splits.json", "splits_single_shot.json")
REMEDY = "restore the file or move it away"

Split = TypeVar("Split", TorchreidImageSplit, TorchreidPersonSplit)


def find_split_file(*folders: Path) -> Path | None:
    """The splits' file in one of the folders, None where there is none."""
    paths = (folder / name for folder in folders for name in NAMES)
    return next((path for path in paths if os.path.isfile(path)), None)


def read_image_split(path: Path, split: int) -> TorchreidImageSplit:
    """One entry of a file of images. Raises UserError for another kind of file and a number that it does not have."""
    return _one_of(read_json(path, list[TorchreidImageSplit], remedy=REMEDY), path, split)


def read_person_split(path: Path, split: int, persons: set[int]) -> tuple[set[int], set[int]]:
    """The training and the test persons of one entry of a file of persons, who are some of these.

    Raises UserError for another kind of file, a number that it does not have, other persons, nobody, and a person in
    both.
    """
    entry = _one_of(read_json(path, list[TorchreidPersonSplit], remedy=REMEDY), path, split)
    train, test = set(entry.train), set(entry.test)
    for part, of_part in (("train", train), ("test", test)):
        if not of_part or not of_part <= persons:
            raise UserError(f"{path}: split {split}, {part}: names others than people seen twice, or nobody: {REMEDY}")
    if len(train | test) < len(entry.train) + len(entry.test):
        raise UserError(f"{path}: split {split} names a person twice, or to train and to test on: {REMEDY}")
    return train, test


def parts_of_images(path: Path, entry: TorchreidImageSplit, rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each part, found by the last folder and the name of the images that the entry names.

    Raises UserError for an image that is not among the rows or is named twice, and for a person in training and query.
    """
    by_path: dict[str, list[Row]] = defaultdict(list)
    by_name: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_path[row.file_name].append(row)
        by_name[PurePosixPath(row.file_name).name].append(row)
    parts: dict[str, list[Row]] = {}
    used: set[str] = set()
    for part, items in (("train", entry.train), ("query", entry.query), ("gallery", entry.gallery)):
        parts[part] = []
        if not items:
            raise UserError(f"{path}: names no image for {part}: {REMEDY}")
        for item in items:
            name = item[0] if isinstance(item, list) and item else item
            if not isinstance(name, str):
                raise UserError(f"{path}: {part} names {str(name)[:60]!r}, which is no image: {REMEDY}")
            tail = PurePosixPath(name.replace("\\", "/"))
            # A name alone says enough where one folder has it.
            meant = by_name[tail.name] if not tail.parent.name else by_path[f"{tail.parent.name}/{tail.name}"]
            if len(meant) != 1:
                raise UserError(f"{path}: names {name!r}, which is not in the set: restore the image or the file")
            row = meant[0]
            if row.file_name in used:
                raise UserError(f"{path}: names {name!r} twice: {REMEDY}")
            used.add(row.file_name)
            parts[part].append(row)
    shared = {row.person_id for row in parts["train"]} & {row.person_id for row in parts["query"]}
    if shared:
        raise UserError(f"{path}: person {min(shared)} is trained and tested on: {REMEDY}")
    return parts


def _one_of(splits: list[Split], path: Path, split: int) -> Split:
    if not 0 <= split < len(splits):
        raise UserError(f"{path}: split {split} is none of its {len(splits)}: use 0 to {len(splits) - 1}")
    return splits[split]
