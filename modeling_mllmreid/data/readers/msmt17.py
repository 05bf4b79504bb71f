"""MSMT17: the parts are lists of files, and the test people reuse the numbers of the training people.

data_dir/                       or data_dir/MSMT17_V1/, data_dir/MSMT17_V2/, data_dir/MSMT17/
    train/, test/               (V1, and copies named MSMT17)      0000/0000_045_12_0303morning_0006_2.jpg
    mask_train_v2/, mask_test_v2/   (V2)
    list_train.txt, list_val.txt, list_query.txt, list_gallery.txt  lines of `path person`
"""

import logging
import os
import re
from pathlib import Path
from typing import Literal

from datasets import DatasetDict

from ...utils.errors import UserError
from ...utils.json_files import read_file
from ..contract import Problems, Sample, check_counts, count_splits, make_split
from .file_names import JPG, DataFolder, SpelledNumbers

logger = logging.getLogger(__name__)


SOURCE = "msmt17"
ARCHIVES = ("MSMT17_V1", "MSMT17_V2", "MSMT17")
IMAGE_FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
LISTS = {"train": "list_train.txt", "val": "list_val.txt", "query": "list_query.txt", "gallery": "list_gallery.txt"}
# person, image, camera, time of day, frame, box
NAME = re.compile(rf"(?P<person>[0-9]+)_[0-9]+_(?P<camera>[0-9]+)(_[0-9A-Za-z]+)+{JPG}")
PERSON = re.compile("[0-9]+")
PUBLISHED = {
    "query": {"samples": 11_659, "identities": 3_060},
    "gallery": {"samples": 82_161, "identities": 3_060},
}
PUBLISHED_TRAIN = {
    "with_val": {"samples": 32_621, "identities": 1_041},
    "without_val": {"samples": 30_248, "identities": 1_041},
}


class _Side:
    """The images of the training people or of the test people, who have numbers of their own."""

    def __init__(self, folder: Path):
        self.files = DataFolder(folder)
        self.persons, self.cameras = SpelledNumbers("person"), SpelledNumbers("camera")


def read_msmt17(
    data_dir: str | os.PathLike[str],
    *,
    train_part: Literal["with_val", "without_val"] = "with_val",
    strict: bool = False,
    problems: Problems | None = None,
) -> DatasetDict:
    """MSMT17 V1 or V2 (Wei et al. 2018) as `train`, `query` and `gallery`; person 0 is a person.

    train_part: "with_val" trains on list_train and list_val together (32,621 images), "without_val" on list_train alone
    (30,248). Both are in the literature; the choice is logged. list_val shows the same people as list_train, so it is
    never a validation part. `file_name` is relative to the folder that holds the lists. Published counts are checked, a
    mismatch being one warning; `strict` makes it an error.
    Raises UserError for a missing folder or list, a line or name that does not parse, and an image that is missing.
    """
    if train_part not in PUBLISHED_TRAIN:
        raise UserError(f"train_part: unknown {train_part!r}: use one of {', '.join(PUBLISHED_TRAIN)}")
    problems = problems or Problems()
    root, (train_folder, test_folder) = _root(Path(data_dir))
    wanted = {"train": ["train", "val"] if train_part == "with_val" else ["train"]}
    wanted |= {"query": ["query"], "gallery": ["gallery"]}
    train, test = _Side(root / train_folder), _Side(root / test_folder)
    rows = {}
    for split, lists in wanted.items():
        side = train if split == "train" else test
        rows[split] = [row for name in lists for row in _read_list(side, f"{root}/{LISTS[name]}", problems)]
    dataset = DatasetDict({split: make_split(sorted(part), root=root, source=SOURCE) for split, part in rows.items()})
    published = {"train": PUBLISHED_TRAIN[train_part], **PUBLISHED}
    name = f"MSMT17 ({train_part.replace('_', ' ')})"
    check_counts(count_splits(dataset), published, name=name, where=root, strict=strict)
    logger.info("%s trains on %d images", name, len(dataset["train"]))
    return dataset


def _root(data_dir: Path) -> tuple[Path, tuple[str, str]]:
    """The folder that holds the lists, and the names of its image folders."""
    for root in (data_dir, *(data_dir / name for name in ARCHIVES)):
        for folders in IMAGE_FOLDERS:
            if all(os.path.isdir(root / folder) for folder in folders):
                return root, folders
    raise UserError(
        f"{data_dir}: not in MSMT17 layout: give data_dir the folder that holds train, test and {LISTS['train']}"
    )


def _read_list(side: _Side, path: str, problems: Problems) -> list[Sample]:
    """The rows of one list, whose paths are relative to the side's folder."""
    try:
        lines = read_file(path, remedy="restore the list").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: restore the list") from error
    rows: list[Sample] = []
    seen: dict[str, int] = {}
    others: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row, agrees = _row(side, line, f"{path}: line {number}")
            first = seen.setdefault(row.file_name, number)
            if first != number:
                raise UserError(f"{path}: line {number}: {row.file_name} is line {first} already: remove one of them")
        except UserError as problem:
            problems.report(problem)
            continue
        rows.append(row)
        if not agrees:
            others.append(number)
    if not rows:
        raise UserError(f"{path}: no line that can be used: restore the list")
    if others:
        logger.warning(
            "%s: %d lines, first line %d, name another person than the folder or the name of their image; the line's "
            "person counts",
            path,
            len(others),
            others[0],
        )
    return rows


def _row(side: _Side, line: str, where: str) -> tuple[Sample, bool]:
    """The row of a line, and whether its folder and its image's name say the same person as the line does."""
    listed, person = [*line.rsplit(maxsplit=1), ""][:2]
    try:
        name = side.files.relative(listed)
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from None
    match = NAME.fullmatch(name.rpartition("/")[2])
    if match is None or PERSON.fullmatch(person) is None:
        raise UserError(
            f"{where}: {line[:80]!r} is not like '0000/0000_045_12_0303morning_0006_2.jpg 0': restore the list"
        )
    if not side.files.has(name):
        raise UserError(f"{where}: there is no image {side.files.root / name}: restore it or remove the line")
    ids = side.persons.read(person, where), side.cameras.read(match["camera"], where)
    row = Sample(f"{side.files.root.name}/{name}", *ids)
    number, folder = person.lstrip("0"), name.partition("/")[0]
    return row, match["person"].lstrip("0") == number and (folder.lstrip("0") == number or not folder.isdecimal())
