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

from ...errors import UserError
from ..columns import Row, make_split
from ..counts import check_counts, count_parts
from ..images import safe_join
from ..problems import Problems

logger = logging.getLogger(__name__)

SOURCE = "msmt17"
ARCHIVES = ("MSMT17_V1", "MSMT17_V2", "MSMT17")
IMAGE_FOLDERS = (("train", "test"), ("mask_train_v2", "mask_test_v2"))
LISTS = {"train": "list_train.txt", "val": "list_val.txt", "query": "list_query.txt", "gallery": "list_gallery.txt"}
# person, image, camera, time of day, frame, box
NAME = re.compile(r"[0-9]+_[0-9]+_(?P<camera>[0-9]+)_[0-9A-Za-z]+_[0-9]+(_[0-9]+)?(_ex)?\.jpg")
PUBLISHED = {
    "query": {"rows": 11_659, "identities": 3_060},
    "gallery": {"rows": 82_161, "identities": 3_060},
}
PUBLISHED_TRAIN = {
    "with_val": {"rows": 32_621, "identities": 1_041},
    "without_val": {"rows": 30_248, "identities": 1_041},
}


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
    rows = {}
    for split, lists in wanted.items():
        folder = train_folder if split == "train" else test_folder
        rows[split] = [row for name in lists for row in _read_list(root, LISTS[name], folder, problems)]
    dataset = DatasetDict({split: make_split(sorted(part), root=root, source=SOURCE) for split, part in rows.items()})
    published = {"train": PUBLISHED_TRAIN[train_part], **PUBLISHED}
    name = f"MSMT17 ({train_part.replace('_', ' ')})"
    check_counts(count_parts(dataset), published, name=name, where=root, strict=strict)
    logger.info("%s trains on %d images", name, len(dataset["train"]))
    return dataset


def _root(data_dir: Path) -> tuple[Path, tuple[str, str]]:
    """The folder that holds the lists, and the names of its image folders."""
    for root in (data_dir, *(data_dir / name for name in ARCHIVES)):
        for folders in IMAGE_FOLDERS:
            if all((root / folder).is_dir() for folder in folders):
                return root, folders
    raise UserError(
        f"{data_dir}: not in MSMT17 layout: give data_dir the folder that holds train, test and {LISTS['train']}"
    )


def _read_list(root: Path, list_name: str, folder: str, problems: Problems) -> list[Row]:
    """The rows of one list, whose paths are relative to the folder."""
    try:
        lines = (root / list_name).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{root / list_name}: cannot be read ({error.strerror}): restore the list") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{root / list_name}: not UTF-8 text: restore the list") from error
    rows: list[Row] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _row(root, folder, line)
            first = seen.setdefault(row.file_name, number)
            if first != number:
                raise UserError(f"{row.file_name} is line {first} already: remove one of them")
        except UserError as problem:
            problems.report(UserError(f"{root / list_name}: line {number}: {problem}"))
            continue
        rows.append(row)
    if not rows:
        raise UserError(f"{root / list_name}: no line that can be used: restore the list")
    return rows


def _row(root: Path, folder: str, line: str) -> Row:
    path, _, person = line.strip().rpartition(" ")
    match = NAME.fullmatch(path.rpartition("/")[2])
    if match is None or not person.isdigit():
        raise UserError(f"{line[:80]!r} is not like '0000/0000_045_12_0303morning_0006_2.jpg 0': restore the list")
    image = safe_join(root / folder, path)
    if not image.is_file():
        raise UserError(f"there is no image {image}: restore it or remove the line")
    return Row(f"{folder}/{path}", int(person), int(match["camera"]))
