"""VIPeR, PRID, GRID and iLIDS: small data sets with ten random splits, whose results are averaged.

Files with splits, as torchreid writes them, are in the data set's folder or next to it:
    splits.json              VIPeR, iLIDS: a list of {"train", "query", "gallery"} with the images of each split; an
                             image is its name or path, alone or first in a list
    splits_single_shot.json  PRID: a list of {"train", "test"} with the persons of each

data_dir/                   or data_dir/VIPeR, .../prid_2011, .../underground_reid, .../i-LIDS_Pedestrian
    VIPeR:  cam_a/000_45.bmp, cam_b/000_90.bmp               person in the name, one image from each camera
    PRID:   single_shot/cam_a/person_0001.png, .../cam_b/... both cameras have persons 1 to 200
    GRID:   probe/0001_1_25004_107_32_106_221.jpeg, gallery/...   person and camera; person 0 marks distractors
            features_and_partitions.mat                      the ten published splits
    iLIDS:  Persons/0001001.jpg                              person (4 digits) and image (3 digits)
Without such a file, the number of the split is the seed that draws the test people of VIPeR, PRID and iLIDS.
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

from ...utils.data_formats import TorchreidImageSplit, TorchreidPersonSplit
from ...utils.errors import UserError
from ...utils.json_files import read_json
from ..contract import UNKNOWN_CAMERA, Problems, Sample, check_counts, count_samples, make_split
from .file_names import BMP, JPG, PNG, FileNames
from .matlab_files import load_matlab, whole_numbers

SPLIT_FILES = ("splits.json", "splits_single_shot.json")
REMEDY = "restore the file or move it away"

Split = TypeVar("Split", TorchreidImageSplit, TorchreidPersonSplit)


def find_split_file(*folders: Path) -> Path | None:
    """Returns the file with splits in the first folder that has one, or None."""
    paths = (folder / name for folder in folders for name in SPLIT_FILES)
    return next((path for path in paths if os.path.isfile(path)), None)


def read_image_split(path: Path, split: int) -> TorchreidImageSplit:
    """Returns one split of a file of images. Raises UserError for another format or a split that is not in the file."""
    return _entry(read_json(path, list[TorchreidImageSplit], remedy=REMEDY), path, split)


def read_person_split(path: Path, split: int, persons: set[int]) -> tuple[set[int], set[int]]:
    """Returns the training and the test persons of one split of a file of persons.

    Raises UserError for another format, a split that is not in the file, a person that is not in `persons`, an empty
    list, and a person in both lists.
    """
    entry = _entry(read_json(path, list[TorchreidPersonSplit], remedy=REMEDY), path, split)
    train, test = set(entry.train), set(entry.test)
    for name, people in (("train", train), ("test", test)):
        if not people or not people <= persons:
            raise UserError(f"{path}: split {split}, {name}: is empty, or has people without a pair: {REMEDY}")
    if len(train | test) < len(entry.train) + len(entry.test):
        raise UserError(f"{path}: split {split} names a person twice, or for train and test: {REMEDY}")
    return train, test


def splits_of_images(path: Path, entry: TorchreidImageSplit, samples: list[Sample]) -> dict[str, list[Sample]]:
    """Returns the samples of each split, which the entry identifies by the last folder and the name of an image.

    Raises UserError for an image that is unknown or named twice, and for a person in train and query.
    """
    by_path: dict[str, list[Sample]] = defaultdict(list)
    by_name: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_path[sample.file_name].append(sample)
        by_name[PurePosixPath(sample.file_name).name].append(sample)
    splits: dict[str, list[Sample]] = {}
    used: set[str] = set()
    for split, items in (("train", entry.train), ("query", entry.query), ("gallery", entry.gallery)):
        splits[split] = []
        if not items:
            raise UserError(f"{path}: names no image for {split}: {REMEDY}")
        for item in items:
            name = item[0] if isinstance(item, list) and item else item
            if not isinstance(name, str):
                raise UserError(f"{path}: {split} names {str(name)[:60]!r}, which is not an image: {REMEDY}")
            image = PurePosixPath(name.replace("\\", "/"))
            # A name without a folder is enough if only one folder has it.
            matches = by_path[f"{image.parent.name}/{image.name}"] if image.parent.name else by_name[image.name]
            if len(matches) != 1:
                raise UserError(f"{path}: names {name!r}, which is not in the set: restore the image or the file")
            sample = matches[0]
            if sample.file_name in used:
                raise UserError(f"{path}: names {name!r} twice: {REMEDY}")
            used.add(sample.file_name)
            splits[split].append(sample)
    shared = {sample.person_id for sample in splits["train"]} & {sample.person_id for sample in splits["query"]}
    if shared:
        raise UserError(f"{path}: person {min(shared)} is in train and query: {REMEDY}")
    return splits


def _entry(splits: list[Split], path: Path, split: int) -> Split:
    """Returns the split with this number. Raises UserError if the file does not have it."""
    if not 0 <= split < len(splits):
        raise UserError(f"{path}: split {split} is not one of its {len(splits)} splits: use 0 to {len(splits) - 1}")
    return splits[split]


NUM_SPLITS = 10
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
# The camera of each folder's images; None if their names contain it.
CAMERAS: dict[str, tuple[int | None, ...]] = {
    "viper": (1, 2),
    "prid": (1, 2),
    "grid": (None, None),
    "ilids": (UNKNOWN_CAMERA,),
}
PRID_PAIRS = 200

Folder = str | os.PathLike[str]


@dataclass(frozen=True)
class _Images:
    """The images of a data set by folder, and the file with its splits, if there is one."""

    root: Path
    by_folder: dict[str, list[Sample]]
    split_file: Path | None


def read_viper(
    data_dir: Folder, *, split: int = 0, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """Reads VIPeR (Gray et al. 2007), with half of the 632 people in the test splits.

    Camera a has the queries and camera b the gallery. Every second split of a file with splits swaps the cameras.

    Args:
        data_dir (`str` or `os.PathLike`): the folder with cam_a and cam_b.
        split (`int`, defaults to 0): the number of the split: 0 to 9, or an index of the file with splits.
        strict (`bool`, defaults to `False`): raise and not warn if the counts differ from the published ones.
        problems (`Problems`, *optional*): collects the images that cannot be used.

    Returns:
        `DatasetDict`: `train`, `query` and `gallery`.

    Raises:
        UserError: the layout is another one, or the split does not exist.
    """
    images = _find_images("viper", data_dir, split, ("cam_a", "cam_b"), "VIPeR", strict, problems)
    a, b = images.by_folder.values()
    if images.split_file is not None:
        entry = read_image_split(images.split_file, split)
        return _dataset("viper", splits_of_images(images.split_file, entry, a + b), images.root)
    persons = sorted({sample.person_id for sample in a} & {sample.person_id for sample in b})
    test = _draw_persons(persons, split, len(persons) // 2)
    splits = {
        "train": [sample for sample in a + b if sample.person_id not in test],
        "query": [sample for sample in a if sample.person_id in test],
        "gallery": [sample for sample in b if sample.person_id in test],
    }
    return _dataset("viper", splits, images.root)


def read_prid(
    data_dir: Folder, *, split: int = 0, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """Reads PRID 2011, single shot (Hirzer et al. 2011), with half of the 200 pairs in the test splits.

    Camera a has the queries. The gallery has the test people of camera b, and all people that only camera b has.

    Args:
        data_dir (`str` or `os.PathLike`): the folder with single_shot.
        split (`int`, defaults to 0): the number of the split: 0 to 9, or an index of the file with splits.
        strict (`bool`, defaults to `False`): raise and not warn if the counts differ from the published ones.
        problems (`Problems`, *optional*): collects the images that cannot be used.

    Returns:
        `DatasetDict`: `train`, `query` and `gallery`.

    Raises:
        UserError: the layout is another one, or the split does not exist.
    """
    folders = ("single_shot/cam_a", "single_shot/cam_b")
    images = _find_images("prid", data_dir, split, folders, "prid_2011", strict, problems)
    a, b = images.by_folder.values()
    pairs = {*range(1, PRID_PAIRS + 1)}
    if images.split_file is None:
        test = _draw_persons(sorted(pairs), split, PRID_PAIRS // 2)
        train = pairs - test
    else:
        in_both_cameras = pairs & {sample.person_id for sample in a} & {sample.person_id for sample in b}
        train, test = read_person_split(images.split_file, split, in_both_cameras)
    splits = {
        "train": [sample for sample in a + b if sample.person_id in train],
        "query": [sample for sample in a if sample.person_id in test],
        "gallery": [sample for sample in b if sample.person_id in test or sample.person_id > PRID_PAIRS],
    }
    return _dataset("prid", splits, images.root)


def read_grid(
    data_dir: Folder, *, split: int = 0, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """Reads GRID (Loy et al. 2009) with its published partitions; the 775 images without a pair are distractors.

    Args:
        data_dir (`str` or `os.PathLike`): the folder with probe and gallery.
        split (`int`, defaults to 0): the number of the partition, 0 to 9.
        strict (`bool`, defaults to `False`): raise and not warn if the counts differ from the published ones.
        problems (`Problems`, *optional*): collects the images that cannot be used.

    Returns:
        `DatasetDict`: `train`, `query` and `gallery`.

    Raises:
        UserError: the layout is another one, or the partitions or the split do not exist.
    """
    folders = ("probe", "gallery")
    images = _find_images("grid", data_dir, split, folders, "underground_reid", strict, problems)
    query, gallery = images.by_folder.values()
    pairs = {sample.person_id for sample in query} & {sample.person_id for sample in gallery}
    train = _grid_partition(images.root / "features_and_partitions.mat", split, pairs)
    splits = {
        "train": [sample for sample in query + gallery if sample.person_id in train],
        "query": [sample for sample in query if sample.person_id not in train],
        "gallery": [sample for sample in gallery if sample.person_id not in train],
    }
    return _dataset("grid", splits, images.root)


def read_ilids(
    data_dir: Folder, *, split: int = 0, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """Reads QMUL iLIDS (Zheng et al. 2009), with one query and one gallery image of each of the 60 test people.

    The cameras are unknown.

    Args:
        data_dir (`str` or `os.PathLike`): the folder with Persons.
        split (`int`, defaults to 0): the number of the split: 0 to 9, or an index of the file with splits.
        strict (`bool`, defaults to `False`): raise and not warn if the counts differ from the published ones.
        problems (`Problems`, *optional*): collects the images that cannot be used.

    Returns:
        `DatasetDict`: `train`, `query` and `gallery`.

    Raises:
        UserError: the layout is another one, or the split does not exist.
    """
    images = _find_images("ilids", data_dir, split, ("Persons",), "i-LIDS_Pedestrian", strict, problems)
    (samples,) = images.by_folder.values()
    if images.split_file is not None:
        entry = read_image_split(images.split_file, split)
        return _dataset("ilids", splits_of_images(images.split_file, entry, samples), images.root)
    persons = sorted({sample.person_id for sample in samples})
    test = _draw_persons(persons, split, -(-len(persons) // 2))
    rng = np.random.default_rng([split, 1])
    splits: dict[str, list[Sample]] = {
        "train": [sample for sample in samples if sample.person_id not in test],
        "query": [],
        "gallery": [],
    }
    for person in sorted(test):
        candidates = [sample for sample in samples if sample.person_id == person]
        if len(candidates) < 2:
            where = images.root / "Persons"
            raise UserError(f"{where}: person {person} has one image: restore the set, two are needed")
        query, gallery = rng.choice(len(candidates), 2, replace=False)
        splits["query"].append(candidates[query])
        splits["gallery"].append(candidates[gallery])
    return _dataset("ilids", splits, images.root)


def _find_images(
    source: str,
    data_dir: Folder,
    split: int,
    folders: tuple[str, ...],
    archive: str,
    strict: bool,
    problems: Problems | None,
) -> _Images:
    """Returns the images of the folders in `data_dir` or in the archive's folder, with checked counts."""
    data_dir = Path(data_dir)
    for root in (data_dir, data_dir / archive):
        if all(os.path.isdir(root / folder) for folder in folders):
            break
    else:
        raise UserError(
            f"{data_dir}: not in the layout of {source}: give data_dir the folder with {', '.join(folders)}"
        )
    split_file = None if source == "grid" else find_split_file(root, data_dir)
    if split_file is None and not 0 <= split < NUM_SPLITS:
        raise UserError(f"split: {split} is not one of the ten splits: use 0 to {NUM_SPLITS - 1}")
    names = FileNames(PATTERNS[source], EXAMPLES[source], problems or Problems())
    by_folder = {
        folder: _read_folder(names, root, folder, camera)
        for folder, camera in zip(folders, CAMERAS[source], strict=True)
    }
    counts = {folder: count_samples(samples) for folder, samples in by_folder.items()}
    check_counts(counts, PUBLISHED[source], name=source, where=root, strict=strict)
    return _Images(root, by_folder, split_file)


def _read_folder(names: FileNames, root: Path, folder: str, camera: int | None) -> list[Sample]:
    """Returns the images of a folder. The camera None means that the file names contain it."""
    samples = [Sample(*image) if camera is None else Sample(*image[:2], camera) for image in names.read(root, folder)]
    if not samples:
        raise UserError(f"{root / folder}: no image in it: restore the set")
    return samples


def _draw_persons(persons: Iterable[int], split: int, count: int) -> set[int]:
    """Draws `count` of the persons. The number of the split is the seed."""
    return {int(person) for person in np.random.default_rng(split).permutation(np.asarray(list(persons)))[:count]}


def _grid_partition(path: Path, split: int, pairs: set[int]) -> set[int]:
    """Returns the training people of a published partition of GRID, some but not all of the pairs."""
    content = load_matlab(path, ["trainIdxAll"], remedy="restore the published partitions")
    try:
        train = set(whole_numbers(content["trainIdxAll"][0][split][0][0][2], f"{path}: partition {split}"))
    except UserError:
        raise
    except Exception as error:  # other content raises many types of errors when it is indexed
        raise UserError(f"{path}: does not have the published partitions ({error}): restore the file") from error
    if not pairs & train or not pairs - train:
        raise UserError(
            f"{path}: does not have the published partitions (split {split} divides no pairs): restore the file"
        )
    return train


def _dataset(source: str, splits: dict[str, list[Sample]], root: Path) -> DatasetDict:
    """Builds the splits. Raises UserError for an empty one."""
    for name, samples in splits.items():
        if not samples:
            raise UserError(f"{root}: no image for {name}, because too few people have a pair: restore the set")
    return DatasetDict(
        {name: make_split(sorted(samples), root=root, source=source) for name, samples in splits.items()}
    )
