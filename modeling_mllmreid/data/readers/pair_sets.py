"""VIPeR, PRID, GRID and iLIDS: small sets that are evaluated on ten random splits, whose results are averaged.

data_dir/                   or data_dir/VIPeR, .../prid_2011, .../underground_reid, .../i-LIDS_Pedestrian
    VIPeR:  cam_a/000_45.bmp, cam_b/000_90.bmp               person in the name, one image from each camera
    PRID:   single_shot/cam_a/person_0001.png, .../cam_b/... persons 1 to 200 are seen by both cameras
    GRID:   probe/0001_1_25004_107_32_106_221.jpeg, gallery/...   person and camera; person 0 is nobody's pair;
            features_and_partitions.mat                      the published ten splits (needs the extra `mat`)
    iLIDS:  Persons/0001001.jpg                              person (4 digits) and image (3 digits)
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from datasets import DatasetDict

from ...errors import UserError
from ..columns import Row, check_counts, make_split
from ..problems import Problems
from .named_files import image_names

SPLITS = 10
PUBLISHED = {
    "viper": {"query": {"rows": 316, "identities": 316}, "gallery": {"rows": 316, "identities": 316}},
    "prid": {"query": {"rows": 100, "identities": 100}, "gallery": {"rows": 649, "identities": 649}},
    "grid": {"query": {"rows": 125, "identities": 125}, "gallery": {"rows": 900}},
    "ilids": {"query": {"rows": 60, "identities": 60}, "gallery": {"rows": 60, "identities": 60}},
}
PATTERNS = {
    "viper": re.compile(r"(?P<person>[0-9]+)_[0-9]+\.bmp"),
    "prid": re.compile(r"person_(?P<person>[0-9]+)\.png"),
    "grid": re.compile(r"(?P<person>[0-9]+)_(?P<camera>[0-9]+)_[0-9_]+\.jpe?g"),
    "ilids": re.compile(r"(?P<person>[0-9]{4})[0-9]{3}\.jpg"),
}
PRID_PAIRS = 200

Folder = str | os.PathLike[str]


def read_viper(
    data_dir: Folder, *, split: int = 0, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """VIPeR (Gray et al. 2007): half of the 632 people are tested on, camera a asks, camera b answers.

    split: which of ten halvings, drawn by the split's number. Raises UserError for another layout or split.
    """
    root = _root(data_dir, split, ("cam_a", "cam_b"), ("VIPeR",))
    a, b = (_rows("viper", root, folder, camera, problems) for camera, folder in enumerate(("cam_a", "cam_b"), start=1))
    persons = sorted({row.person_id for row in a} & {row.person_id for row in b})
    test = _half(persons, split, len(persons) // 2)
    parts = {
        "train": [row for row in a + b if row.person_id not in test],
        "query": [row for row in a if row.person_id in test],
        "gallery": [row for row in b if row.person_id in test],
    }
    return _dataset("viper", parts, root, strict)


def read_prid(
    data_dir: Folder, *, split: int = 0, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """PRID 2011, single shot (Hirzer et al. 2011): of the 200 people seen twice half are tested on.

    Camera a asks; the gallery is camera b without the training people, with everybody seen by it alone. split: which
    of ten halvings, drawn by the split's number. Raises UserError for another layout or split.
    """
    root = _root(data_dir, split, ("single_shot",), ("prid_2011",))
    folders = ("single_shot/cam_a", "single_shot/cam_b")
    a, b = (_rows("prid", root, folder, camera, problems) for camera, folder in enumerate(folders, start=1))
    test = _half(range(1, PRID_PAIRS + 1), split, PRID_PAIRS // 2)
    parts = {
        "train": [row for row in a + b if row.person_id <= PRID_PAIRS and row.person_id not in test],
        "query": [row for row in a if row.person_id in test],
        "gallery": [row for row in b if row.person_id in test or row.person_id > PRID_PAIRS],
    }
    return _dataset("prid", parts, root, strict)


def read_grid(
    data_dir: Folder, *, split: int = 0, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """GRID (Loy et al. 2009) by its published partitions; the 775 images of nobody's pair are distractors.

    split: which of the ten partitions. Raises UserError for another layout or split, and without the partitions' file.
    """
    root = _root(data_dir, split, ("probe", "gallery"), ("underground_reid",))
    probe, gallery = (_rows("grid", root, folder, None, problems) for folder in ("probe", "gallery"))
    train = _grid_partition(root / "features_and_partitions.mat", split)
    parts = {
        "train": [row for row in probe + gallery if row.person_id in train],
        "query": [row for row in probe if row.person_id not in train],
        "gallery": [row for row in gallery if row.person_id not in train],
    }
    return _dataset("grid", parts, root, strict)


def read_ilids(
    data_dir: Folder, *, split: int = 0, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """QMUL iLIDS (Zheng et al. 2009): of each of 60 test people one image asks and one answers; cameras are unknown.

    split: which of ten draws, by the split's number. Raises UserError for another layout or split.
    """
    root = _root(data_dir, split, ("Persons",), ("i-LIDS_Pedestrian",))
    rows = _rows("ilids", root, "Persons", -1, problems)
    persons = sorted({row.person_id for row in rows})
    test = _half(persons, split, -(-len(persons) // 2))
    rng = np.random.default_rng([split, 1])
    parts: dict[str, list[Row]] = {
        "train": [row for row in rows if row.person_id not in test],
        "query": [],
        "gallery": [],
    }
    for person in sorted(test):
        images = [row for row in rows if row.person_id == person]
        if len(images) < 2:
            raise UserError(f"{root / 'Persons'}: person {person} has one image: restore the set, two are needed")
        query, gallery = rng.choice(len(images), 2, replace=False)
        parts["query"].append(images[query])
        parts["gallery"].append(images[gallery])
    return _dataset("ilids", parts, root, strict)


def _root(data_dir: Folder, split: int, folders: tuple[str, ...], archive: tuple[str, ...]) -> Path:
    """The folder that holds these folders."""
    if not 0 <= split < SPLITS:
        raise UserError(f"split: {split} is none of the ten: use 0 to {SPLITS - 1}")
    for root in (Path(data_dir), *(Path(data_dir) / name for name in archive)):
        if all((root / folder).is_dir() for folder in folders):
            return root
    raise UserError(f"{data_dir}: not in this set's layout: give data_dir the folder that holds {', '.join(folders)}")


def _rows(source: str, root: Path, folder: str, camera: int | None, problems: Problems | None) -> list[Row]:
    """The images of a folder; the camera is read from the name where none is given."""
    rows, problems = [], problems or Problems()
    if not (root / folder).is_dir():
        raise UserError(f"{root / folder}: no such folder: restore it")
    for name in image_names(root / folder):
        match = PATTERNS[source].fullmatch(name)
        if match is None:
            problems.report(UserError(f"{root / folder / name}: not a name of this set: rename it or move it away"))
            continue
        camera_id = int(match["camera"]) if camera is None else camera
        rows.append(Row(f"{folder}/{name}", int(match["person"]), camera_id))
    if not rows:
        raise UserError(f"{root / folder}: no image in it: restore the set")
    return rows


def _half(persons: Iterable[int], split: int, count: int) -> set[int]:
    """So many of the persons, drawn by the split's number."""
    return {int(person) for person in np.random.default_rng(split).permutation(np.asarray(list(persons)))[:count]}


def _grid_partition(path: Path, split: int) -> set[int]:
    """The training people of one published partition of GRID."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError("GRID needs scipy, which is not installed: pip install 'mllmreid[mat]'") from error
    if not path.is_file():
        raise UserError(f"{path}: no such file: restore the published partitions")
    try:
        partitions = loadmat(path)["trainIdxAll"][0]
        return {int(person) for person in np.ravel(partitions[split][0][0][2])}
    except (KeyError, IndexError, ValueError, OSError) as error:
        raise UserError(f"{path}: holds no partitions as published ({error}): restore the file") from error


def _dataset(source: str, parts: dict[str, list[Row]], root: Path, strict: bool) -> DatasetDict:
    dataset = DatasetDict({name: make_split(sorted(rows), root=root, source=source) for name, rows in parts.items()})
    check_counts(dataset, PUBLISHED[source], name=source, where=root, strict=strict)
    return dataset
