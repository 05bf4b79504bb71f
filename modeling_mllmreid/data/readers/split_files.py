"""The ten splits of the small sets as torchreid wrote them, for results that compare with those on the same file.

    splits.json              VIPeR, iLIDS: a list of {"train", "query", "gallery"}, each the images of that part, an
                             image being its name or path, alone or first in a list
    splits_single_shot.json  PRID: a list of {"train", "test"}, each the persons of that part
The file lies beside the set's folder or in it.
"""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from ...errors import UserError
from ..columns import Row

NAMES = ("splits.json", "splits_single_shot.json")
IMAGES, PERSONS = ("train", "query", "gallery"), ("train", "test")


def find_split_file(*folders: Path) -> Path | None:
    """The splits' file in one of the folders, None where there is none."""
    return next((folder / name for folder in folders for name in NAMES if (folder / name).is_file()), None)


def read_split(path: Path, split: int, keys: tuple[str, ...]) -> dict[str, list[Any]]:
    """One entry of the file, each with these keys.

    Raises UserError for another kind of file and a number that it does not have.
    """
    try:
        splits = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}): restore it or move it away") from error
    if not isinstance(splits, list) or not all(isinstance(entry, dict) and {*keys} <= {*entry} for entry in splits):
        raise UserError(f"{path}: no list of splits with {', '.join(keys)}: restore it or move it away")
    if not 0 <= split < len(splits):
        raise UserError(f"{path}: split {split} is none of its {len(splits)}: use 0 to {len(splits) - 1}")
    return splits[split]


def parts_of_images(path: Path, entry: dict[str, list[Any]], rows: list[Row]) -> dict[str, list[Row]]:
    """The rows of each part, found by the last folder and the name of the images that the entry names.

    Raises UserError for an image that is not among the rows.
    """
    by_name = {row.file_name: row for row in rows}
    folders = {PurePosixPath(row.file_name).parent.name for row in rows}
    parts: dict[str, list[Row]] = {}
    for part in ("train", "query", "gallery"):
        names = [item[0] if isinstance(item, list) else item for item in entry[part]]
        parts[part] = []
        for name in names:
            tail = PurePosixPath(str(name).replace("\\", "/"))
            # A name alone is only told apart where there is one folder.
            folder = tail.parent.name or next(iter(folders))
            row = by_name.get(f"{folder}/{tail.name}")
            if row is None:
                raise UserError(f"{path}: names {name}, which is not in the set: restore the image or the file")
            parts[part].append(row)
    return parts
