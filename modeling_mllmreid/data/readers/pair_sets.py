"""VIPeR, PRID, GRID and iLIDS: small sets that are evaluated on ten random splits, whose results are averaged.

    splits.json              VIPeR, iLIDS: a list of {"train", "query", "gallery"}, each the images of that part, an
                             image being its name or path, alone or first in a list
    splits_single_shot.json  PRID: a list of {"train", "test"}, each the persons of that part
The file lies beside the set's folder or in it.

data_dir/                   or data_dir/VIPeR, .../prid_2011, .../underground_reid, .../i-LIDS_Pedestrian
    VIPeR:  cam_a/000_45.bmp, cam_b/000_90.bmp               person in the name, one image from each camera
    PRID:   single_shot/cam_a/person_0001.png, .../cam_b/... persons 1 to 200 are seen by both cameras
    GRID:   probe/0001_1_25004_107_32_106_221.jpeg, gallery/...   person and camera; person 0 is nobody's pair;
            features_and_partitions.mat                      the published ten splits
    iLIDS:  Persons/0001001.jpg                              person (4 digits) and image (3 digits)
The halves of VIPeR, PRID and iLIDS are those of a split file (`split_files`) beside the folder, else drawn by number.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from datasets import DatasetDict

from ...utils.errors import UserError
from ...utils.formats import TorchreidImageSplit, TorchreidPersonSplit
from ...utils.json_files import read_json
from ..contract import UNKNOWN_CAMERA, Problems, Sample, check_counts, count_samples, make_split
from .file_names import BMP, JPG, PNG, FileNames
from .matlab_files import load_matlab, whole_numbers

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


def splits_of_images(path: Path, entry: TorchreidImageSplit, rows: list[Sample]) -> dict[str, list[Sample]]:
    """The rows of each part, found by the last folder and the name of the images that the entry names.

    Raises UserError for an image that is not among the rows or is named twice, and for a person in training and query.
    """
    by_path: dict[str, list[Sample]] = defaultdict(list)
    by_name: dict[str, list[Sample]] = defaultdict(list)
    for row in rows:
        by_path[row.file_name].append(row)
        by_name[PurePosixPath(row.file_name).name].append(row)
    parts: dict[str, list[Sample]] = {}
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


SPLITS = 10
# Images and persons of each folder.
PUBLISHED = {
    "viper": {"cam_a": {"samples": 632, "identities": 632}, "cam_b": {"samples": 632, "identities": 632}},
    "prid": {
        "single_shot/cam_a": {"samples": 385, "identities": 385},
        "single_shot/cam_b": {"samples": 749, "identities": 749},
    },
    "grid": {"probe": {"samples": 250, "identities": 250}, "gallery": {"samples": 1_025, "identities": 251}},
    "ilids": {"Persons": {"samples": 476, "identities": 119}},
}
PATTERNS = {
    "viper": re.compile(rf"(?P<person>[0-9]+)_[0-9]+{BMP}"),
    "prid": re.compile(rf"person_(?P<person>[0-9]+){PNG}"),
    "grid": re.compile(rf"(?P<person>[0-9]+)_(?P<camera>[0-9]+)_[0-9_]+{JPG}"),
    "ilids": re.compile(rf"(?P<person>[0-9]{{4}})[0-9]{{3}}{JPG}"),
}
EXAMPLES = {
    "viper": "000_45.bmp",
    "prid": "person_0001.png",
    "grid": "0001_1_25004_107_32_106_221.jpeg",
    "ilids": "0001001.jpg",
}
# The camera of each folder's images; None: it is in their names.
CAMERAS: dict[str, tuple[int | None, ...]] = {
    "viper": (1, 2),
    "prid": (1, 2),
    "grid": (None, None),
    "ilids": (UNKNOWN_CAMERA,),
}
PRID_PAIRS = 200

Folder = str | os.PathLike[str]


@dataclass(frozen=True)
class _Found:
    """A set as it lies there. rows: its images by folder. split_file: torchreid's, where there is one."""

    root: Path
    rows: dict[str, list[Sample]]
    split_file: Path | None


def read_viper(
    data_dir: Folder, *, split: int = 0, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """VIPeR (Gray et al. 2007): half of the 632 people are tested on, camera a asks, camera b answers.

    split: which of ten halvings, drawn by the split's number; a split file has 20, in every other one of which camera b
    asks. Raises UserError for another layout or split.
    """
    found = _find("viper", data_dir, split, ("cam_a", "cam_b"), "VIPeR", strict, problems)
    a, b = found.rows.values()
    if found.split_file is not None:
        entry = read_image_split(found.split_file, split)
        return _dataset("viper", splits_of_images(found.split_file, entry, a + b), found.root)
    persons = sorted({row.person_id for row in a} & {row.person_id for row in b})
    test = _half(persons, split, len(persons) // 2)
    parts = {
        "train": [row for row in a + b if row.person_id not in test],
        "query": [row for row in a if row.person_id in test],
        "gallery": [row for row in b if row.person_id in test],
    }
    return _dataset("viper", parts, found.root)


def read_prid(
    data_dir: Folder, *, split: int = 0, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """PRID 2011, single shot (Hirzer et al. 2011): of the 200 people seen twice half are tested on.

    Camera a asks; the gallery is camera b without the training people, with everybody seen by it alone. split: which
    of ten halvings, drawn by the split's number. Raises UserError for another layout or split.
    """
    folders = ("single_shot/cam_a", "single_shot/cam_b")
    found = _find("prid", data_dir, split, folders, "prid_2011", strict, problems)
    a, b = found.rows.values()
    pairs = {*range(1, PRID_PAIRS + 1)}
    if found.split_file is None:
        test = _half(sorted(pairs), split, PRID_PAIRS // 2)
        train = pairs - test
    else:
        seen_twice = pairs & {row.person_id for row in a} & {row.person_id for row in b}
        train, test = read_person_split(found.split_file, split, seen_twice)
    parts = {
        "train": [row for row in a + b if row.person_id in train],
        "query": [row for row in a if row.person_id in test],
        "gallery": [row for row in b if row.person_id in test or row.person_id > PRID_PAIRS],
    }
    return _dataset("prid", parts, found.root)


def read_grid(
    data_dir: Folder, *, split: int = 0, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """GRID (Loy et al. 2009) by its published partitions; the 775 images of nobody's pair are distractors.

    split: which of the ten partitions. Raises UserError for another layout or split, and without the partitions' file.
    """
    folders = ("probe", "gallery")
    found = _find("grid", data_dir, split, folders, "underground_reid", strict, problems)
    probe, gallery = found.rows.values()
    pairs = {row.person_id for row in probe} & {row.person_id for row in gallery}
    train = _grid_partition(found.root / "features_and_partitions.mat", split, pairs)
    parts = {
        "train": [row for row in probe + gallery if row.person_id in train],
        "query": [row for row in probe if row.person_id not in train],
        "gallery": [row for row in gallery if row.person_id not in train],
    }
    return _dataset("grid", parts, found.root)


def read_ilids(
    data_dir: Folder, *, split: int = 0, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """QMUL iLIDS (Zheng et al. 2009): of each of 60 test people one image asks and one answers; cameras are unknown.

    split: which of ten draws, by the split's number. Raises UserError for another layout or split.
    """
    found = _find("ilids", data_dir, split, ("Persons",), "i-LIDS_Pedestrian", strict, problems)
    (rows,) = found.rows.values()
    if found.split_file is not None:
        entry = read_image_split(found.split_file, split)
        return _dataset("ilids", splits_of_images(found.split_file, entry, rows), found.root)
    persons = sorted({row.person_id for row in rows})
    test = _half(persons, split, -(-len(persons) // 2))
    rng = np.random.default_rng([split, 1])
    parts: dict[str, list[Sample]] = {
        "train": [row for row in rows if row.person_id not in test],
        "query": [],
        "gallery": [],
    }
    for person in sorted(test):
        images = [row for row in rows if row.person_id == person]
        if len(images) < 2:
            where = found.root / "Persons"
            raise UserError(f"{where}: person {person} has one image: restore the set, two are needed")
        query, gallery = rng.choice(len(images), 2, replace=False)
        parts["query"].append(images[query])
        parts["gallery"].append(images[gallery])
    return _dataset("ilids", parts, found.root)


def _find(
    source: str,
    data_dir: Folder,
    split: int,
    folders: tuple[str, ...],
    archive: str,
    strict: bool,
    problems: Problems | None,
) -> _Found:
    """The images of these folders, in `data_dir` or the archive's folder inside it, their counts checked."""
    data_dir = Path(data_dir)
    for root in (data_dir, data_dir / archive):
        if all(os.path.isdir(root / folder) for folder in folders):
            break
    else:
        wanted = ", ".join(folders)
        raise UserError(f"{data_dir}: not in this set's layout: give data_dir the folder that holds {wanted}")
    split_file = None if source == "grid" else find_split_file(root, data_dir)
    if split_file is None and not 0 <= split < SPLITS:
        raise UserError(f"split: {split} is none of the ten: use 0 to {SPLITS - 1}")
    names = FileNames(PATTERNS[source], EXAMPLES[source], problems or Problems())
    rows = {folder: _rows(names, root, folder, camera) for folder, camera in zip(folders, CAMERAS[source], strict=True)}
    found = {folder: count_samples(of_folder) for folder, of_folder in rows.items()}
    check_counts(found, PUBLISHED[source], name=source, where=root, strict=strict)
    return _Found(root, rows, split_file)


def _rows(names: FileNames, root: Path, folder: str, camera: int | None) -> list[Sample]:
    """The images of a folder; the camera is read from the name where none is given."""
    rows = [Sample(*image) if camera is None else Sample(*image[:2], camera) for image in names.read(root, folder)]
    if not rows:
        raise UserError(f"{root / folder}: no image in it: restore the set")
    return rows


def _half(persons: Iterable[int], split: int, count: int) -> set[int]:
    """So many of the persons, drawn by the split's number."""
    return {int(person) for person in np.random.default_rng(split).permutation(np.asarray(list(persons)))[:count]}


def _grid_partition(path: Path, split: int, pairs: set[int]) -> set[int]:
    """The training people of one published partition of GRID: some of the pairs, not all."""
    content = load_matlab(path, ["trainIdxAll"], remedy="restore the published partitions")
    try:
        train = set(whole_numbers(content["trainIdxAll"][0][split][0][0][2], f"{path}: partition {split}"))
    except UserError:
        raise
    except Exception as error:  # another content is indexed wrongly in as many ways as there are kinds of arrays
        raise UserError(f"{path}: holds no partitions as published ({error}): restore the file") from error
    if not pairs & train or not pairs - train:
        raise UserError(f"{path}: holds no partitions as published (split {split} halves no pairs): restore the file")
    return train


def _dataset(source: str, parts: dict[str, list[Sample]], root: Path) -> DatasetDict:
    for name, rows in parts.items():
        if not rows:
            raise UserError(f"{root}: no image for {name}, since too few people are seen twice: restore the set")
    return DatasetDict({name: make_split(sorted(rows), root=root, source=source) for name, rows in parts.items()})
