"""MSMT17: lists of files define the splits, and the test people have the same numbers as the training people.

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


class _People:
    """The images and the numbers of the training people or of the test people."""

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
    """Reads MSMT17 V1 or V2 (Wei et al. 2018) as `train`, `query` and `gallery`; person 0 is a person.

    Args:
        data_dir (`str` or `os.PathLike`): the folder with the lists, or with the archive's folder.
        train_part (`str`, defaults to `"with_val"`): the lists of the split `train`. `"with_val"` uses list_train and
            list_val (32,621 images), `"without_val"` only list_train (30,248). The literature uses both, and the log
            records the choice. list_val has the same people as list_train, so it is not a validation split.
        strict (`bool`, defaults to `False`): raise and not warn if the counts differ from the published ones.
        problems (`Problems`, *optional*): collects the lines that cannot be used.

    Returns:
        `DatasetDict`: the splits. `file_name` is relative to the folder with the lists.

    Raises:
        UserError: a folder, a list or an image is missing, or a line or a name does not match.
    """
    if train_part not in PUBLISHED_TRAIN:
        raise UserError(f"train_part: unknown {train_part!r}: use one of {', '.join(PUBLISHED_TRAIN)}")
    problems = problems or Problems()
    root, (train_folder, test_folder) = _root(Path(data_dir))
    lists_of_splits = {"train": ["train", "val"] if train_part == "with_val" else ["train"]}
    lists_of_splits |= {"query": ["query"], "gallery": ["gallery"]}
    train_people, test_people = _People(root / train_folder), _People(root / test_folder)
    samples: dict[str, list[Sample]] = {}
    for split, lists in lists_of_splits.items():
        people = train_people if split == "train" else test_people
        samples[split] = [sample for name in lists for sample in _read_list(people, f"{root}/{LISTS[name]}", problems)]
    dataset = DatasetDict(
        {name: make_split(sorted(split), root=root, source=SOURCE) for name, split in samples.items()}
    )
    published = {"train": PUBLISHED_TRAIN[train_part], **PUBLISHED}
    name = f"MSMT17 ({train_part.replace('_', ' ')})"
    check_counts(count_splits(dataset), published, name=name, where=root, strict=strict)
    logger.info("%s trains on %d images", name, len(dataset["train"]))
    return dataset


def _root(data_dir: Path) -> tuple[Path, tuple[str, str]]:
    """Returns the folder with the lists, and the names of its image folders."""
    for root in (data_dir, *(data_dir / name for name in ARCHIVES)):
        for folders in IMAGE_FOLDERS:
            if all(os.path.isdir(root / folder) for folder in folders):
                return root, folders
    raise UserError(f"{data_dir}: not in MSMT17 layout: give data_dir the folder with train, test and {LISTS['train']}")


def _read_list(people: _People, path: str, problems: Problems) -> list[Sample]:
    """Reads one list, whose paths are relative to the image folder of these people."""
    try:
        lines = read_file(path, remedy="restore the list").decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: restore the list") from error
    samples: list[Sample] = []
    first_lines: dict[str, int] = {}
    other_person_lines: list[int] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            sample, same_person = _parse_line(people, line, f"{path}: line {number}")
            first = first_lines.setdefault(sample.file_name, number)
            if first != number:
                raise UserError(
                    f"{path}: line {number}: {sample.file_name} is line {first} already: remove one of them"
                )
        except UserError as problem:
            problems.report(problem)
            continue
        samples.append(sample)
        if not same_person:
            other_person_lines.append(number)
    if not samples:
        raise UserError(f"{path}: no line can be used: restore the list")
    if other_person_lines:
        logger.warning(
            "%s: %d lines, first line %d, name another person than the folder or the name of their image; the line's "
            "person counts",
            path,
            len(other_person_lines),
            other_person_lines[0],
        )
    return samples


def _parse_line(people: _People, line: str, where: str) -> tuple[Sample, bool]:
    """Returns the image of a line, and whether the line, the folder and the file name have the same person."""
    listed, person = [*line.rsplit(maxsplit=1), ""][:2]
    try:
        name = people.files.relative(listed)
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from None
    match = NAME.fullmatch(name.rpartition("/")[2])
    if match is None or PERSON.fullmatch(person) is None:
        raise UserError(
            f"{where}: {line[:80]!r} is not like '0000/0000_045_12_0303morning_0006_2.jpg 0': restore the list"
        )
    if not people.files.has(name):
        raise UserError(f"{where}: there is no image {people.files.root / name}: restore it or remove the line")
    ids = people.persons.read(person, where), people.cameras.read(match["camera"], where)
    sample = Sample(f"{people.files.root.name}/{name}", *ids)
    number, folder = person.lstrip("0"), name.partition("/")[0]
    return sample, match["person"].lstrip("0") == number and (folder.lstrip("0") == number or not folder.isdecimal())
