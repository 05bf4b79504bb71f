"""CUHK03 with its new protocol, CUHK02 and CUHK-SYSU.

data_dir/                      or data_dir/cuhk03_release/
    cuhk03_new_protocol_config_detected.mat, cuhk03_new_protocol_config_labeled.mat
    images_detected/, images_labeled/     1_001_1_01.png   (pair of cameras, person in it, view, image)
    cuhk-03.mat                           the archive: the reader extracts its images once, into the same folder

CUHK02:     data_dir/ or data_dir/Dataset/ with P1/cam1/001_1.png ... P5/cam2/...   pair, camera, person
CUHK-SYSU:  data_dir/ or data_dir/cropped_images/ with p11422_s16929_1.jpg          person, scene; cropped_image too
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from datasets import DatasetDict
from PIL import Image
from tqdm.auto import tqdm

from ...utils.errors import UserError
from ...utils.outputs import atomic_folder
from ..contract import Counts, Problems, Sample, check_counts, count_splits, make_split
from ..images import list_images
from .file_names import JPG, PNG, DataFolder, FileNames, shown_path
from .matlab_files import load_matlab, texts, whole_numbers

SOURCE = "cuhk03"
ARCHIVE = "cuhk03_release"
# boxes -> the archive's word for them
WORDS = {"detected": "detected", "labelled": "labeled"}
FOLDERS = {boxes: f"images_{word}" for boxes, word in WORDS.items()}
CONFIGS = {boxes: f"cuhk03_new_protocol_config_{word}.mat" for boxes, word in WORDS.items()}
# pair, person in the pair, view, image
NAME = re.compile(r"(?P<pair>[0-9]+)_(?P<person>[0-9]+)_(?P<camera>[12])_(?P<image>[0-9]+)" + PNG)
INDEXES = {"train": "train_idx", "query": "query_idx", "gallery": "gallery_idx"}
PUBLISHED = {
    "detected": {
        "train": {"samples": 7_365, "identities": 767},
        "query": {"samples": 1_400, "identities": 700},
        "gallery": {"samples": 5_332, "identities": 700},
    },
    "labelled": {
        "train": {"samples": 7_368, "identities": 767},
        "query": {"samples": 1_400, "identities": 700},
        "gallery": {"samples": 5_328, "identities": 700},
    },
}
# The archive has ten images of each person, five of each view.
IMAGES_PER_VIEW = 5


def read_cuhk03(
    data_dir: str | os.PathLike[str],
    *,
    boxes: Literal["detected", "labelled"] = "detected",
    strict: bool = False,
    problems: Problems | None = None,
) -> DatasetDict:
    """Reads CUHK03-NP (Li et al. 2014; protocol of Zhong et al. 2017) as `train`, `query` and `gallery`.

    The camera is the view (1 or 2), not the pair of cameras. The archive needs h5py (the extra `mat`).

    Args:
        data_dir (`str` or `os.PathLike`): the folder of the images or of the archive.
        boxes (`str`, defaults to `"detected"`): `"detected"` for the boxes of a detector, `"labelled"` for manual ones.
        strict (`bool`, defaults to `False`): raise and not warn if the counts differ from the published ones.
        problems (`Problems`, *optional*): collects the images that cannot be used.

    Returns:
        `DatasetDict`: the splits.

    Raises:
        UserError: a file, an image or a package is missing, or a name does not match.
    """
    if boxes not in FOLDERS:
        raise UserError(f"boxes: unknown {boxes!r}: use one of {', '.join(FOLDERS)}")
    problems, root = problems or Problems(), _root(Path(data_dir), boxes)
    folder = FOLDERS[boxes]
    if not _has_images(root / folder):
        try:
            extract_images(root / "cuhk-03.mat", root / folder, WORDS[boxes])
        except UserError:
            # Another process may have extracted them at the same time.
            if not _has_images(root / folder):
                raise
    # In torchreid's folder, the archive's folder and the protocol's file are next to each other.
    configs = [root / CONFIGS[boxes], Path(data_dir, CONFIGS[boxes])]
    config = next((path for path in configs if os.path.isfile(path)), configs[0])
    samples = _read_protocol(config, DataFolder(root / folder), problems)
    dataset = DatasetDict(
        {name: make_split(sorted(split), root=root, source=SOURCE) for name, split in samples.items()}
    )
    check_counts(count_splits(dataset), PUBLISHED[boxes], name=f"CUHK03-NP, {boxes}", where=root, strict=strict)
    return dataset


def extract_images(archive: Path, folder: Path, key: str) -> None:
    """Extracts the images of an archive as PNG files. The folder appears when it is complete.

    Args:
        archive (`Path`): `cuhk-03.mat`.
        folder (`Path`): the new folder.
        key (`str`): "detected" or "labeled".

    Raises:
        UserError: the archive cannot be read, or the folder cannot be written.
    """
    with atomic_folder(folder) as temporary:
        for name, pixels in _archived_images(archive, key, folder.name):
            Image.fromarray(pixels).save(temporary / name)


def _archived_images(archive: Path, key: str, folder_name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the name and the pixels of every image in the archive."""
    try:
        import h5py
    except ImportError as error:
        raise UserError("cuhk-03.mat needs h5py, which is not installed: pip install 'mllmreid[mat]'") from error
    try:
        with h5py.File(archive) as mat:
            pairs = [mat[reference] for reference in np.ravel(mat[key])]
            for pair, cells in enumerate(
                tqdm(pairs, desc=f"extracting {folder_name}", unit="pair", disable=None), start=1
            ):
                # In MATLAB's order, the first index is the image and the second one the person.
                for index, person in np.ndindex(cells.shape):
                    pixels = mat[cells[index, person]][()]
                    if pixels.ndim == 3 and pixels.size:
                        if pixels.dtype != np.uint8 or pixels.shape[0] != 3:
                            raise ValueError(f"pixels of kind {pixels.dtype}, shape {pixels.shape}")
                        view = 1 if index < IMAGES_PER_VIEW else 2
                        yield f"{pair}_{person + 1:03d}_{view}_{index + 1:02d}.png", pixels.T
    except Exception as error:  # HDF5 reports broken bytes as OSError, KeyError, RuntimeError, TypeError, ...
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{archive}: not readable as CUHK03's archive ({reason}): restore the file") from error


def _read_protocol(path: Path, files: DataFolder, problems: Problems) -> dict[str, list[Sample]]:
    """Returns the images of each split from the protocol's file."""
    variables = ["filelist", "labels", *INDEXES.values()]
    config = load_matlab(path, variables, remedy="put the new protocol's file there")
    missing = [key for key in variables if key not in config]
    if missing:
        raise UserError(f"{path}: has no {', '.join(missing)}: give the new protocol's file")
    names = texts(config["filelist"], f"{path}: filelist")
    persons = whole_numbers(config["labels"], f"{path}: labels")
    folder = files.root.name
    samples: dict[str, list[Sample]] = {}
    for split, key in INDEXES.items():
        samples[split] = []
        indexes = [number - 1 for number in whole_numbers(config[key], f"{path}: {key}")]  # MATLAB counts from 1
        listed = [names[index] for index in indexes if 0 <= index < min(len(names), len(persons))]
        if len(set(listed)) < len(indexes):
            raise UserError(f"{path}: {key} repeats an image or has a wrong index: give the new protocol's file")
        for index, name in zip(indexes, listed, strict=True):
            match = NAME.fullmatch(name)
            if match is None or not files.has(name):
                reason = "not a name like 1_001_1_01.png" if match is None else f"no such image in {files.root}"
                problems.report(UserError(f"{path}: {shown_path(name[:80])}: {reason}: restore the set"))
                continue
            samples[split].append(Sample(f"{folder}/{name}", persons[index], int(match["camera"])))
    return samples


def _has_images(folder: Path) -> bool:
    """Returns whether the folder exists and has an image."""
    return os.path.isdir(folder) and bool(list_images(folder).names)


def _root(data_dir: Path, boxes: str) -> Path:
    """Returns the folder with the images or the archive."""
    for root in (data_dir, data_dir / ARCHIVE):
        if _has_images(root / FOLDERS[boxes]) or os.path.isfile(root / "cuhk-03.mat"):
            return root
    raise UserError(f"{data_dir}: no {FOLDERS[boxes]} and no cuhk-03.mat: give data_dir the folder with one of them")


PAIRS, PAIR_CAMERAS = range(1, 6), (1, 2)
CUHK02_NAME = re.compile(rf"(?P<person>[0-9]+)_[0-9]+{PNG}")
CUHK02_PUBLISHED = {"train": {"samples": 7_264, "identities": 1_816}}
SYSU_NAME = re.compile(rf"p(?P<person>[0-9]+)_[0-9a-z_]+({PNG}|{JPG})")
SYSU_FOLDERS = ("cropped_images", "cropped_image")
SYSU_PUBLISHED = {"train": {"samples": 34_574, "identities": 11_934}}
# The person numbers start again in each pair of cameras of CUHK02.
PERSONS_PER_PAIR = 10_000


def read_cuhk02(
    data_dir: str | os.PathLike[str], *, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """Reads CUHK02 (Li and Wang 2013) as `train`.

    The person id is 10,000 x pair + number. Each of the five pairs has two of the ten cameras.

    Args:
        data_dir (`str` or `os.PathLike`): the folder with P1 to P5.
        strict (`bool`, defaults to `False`): raise and not warn if the counts differ from the published ones.
        problems (`Problems`, *optional*): collects the images that cannot be used.

    Returns:
        `DatasetDict`: the split `train`.

    Raises:
        UserError: the layout is another one, or a name does not match.
    """
    problems, root = problems or Problems(), Path(data_dir)
    root = root if os.path.isdir(root / "P1") else root / "Dataset"
    samples: list[Sample] = []
    for pair in PAIRS:
        names = FileNames(CUHK02_NAME, "001_1.png", problems)
        for camera in PAIR_CAMERAS:
            folder = f"P{pair}/cam{camera}"
            if not os.path.isdir(root / folder):
                raise UserError(f"{root / folder}: no such folder: give data_dir the folder with P1 to P5")
            for image in names.read(root, folder):
                if image.person_id >= PERSONS_PER_PAIR:
                    problems.report(
                        UserError(
                            f"{root / image.file_name}: person {image.person_id} would be in another pair: "
                            f"number persons below {PERSONS_PER_PAIR}"
                        )
                    )
                    continue
                person_id = PERSONS_PER_PAIR * pair + image.person_id
                samples.append(Sample(image.file_name, person_id, 2 * pair + camera - 2))
    return _train_split("cuhk02", samples, root, CUHK02_PUBLISHED, strict)


def read_cuhk_sysu(
    data_dir: str | os.PathLike[str], *, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """Reads the person crops of CUHK-SYSU (Xiao et al. 2017) as `train`; cameras are unknown.

    Args:
        data_dir (`str` or `os.PathLike`): the folder with `cropped_images`, or with the images.
        strict (`bool`, defaults to `False`): raise and not warn if the counts differ from the published ones.
        problems (`Problems`, *optional*): collects the images that cannot be used.

    Returns:
        `DatasetDict`: the split `train`.

    Raises:
        UserError: the layout is another one, or a name does not match.
    """
    problems, root = problems or Problems(), Path(data_dir)
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder: give data_dir the folder with {SYSU_FOLDERS[0]}")
    folder = next((name for name in SYSU_FOLDERS if os.path.isdir(root / name)), ".")
    samples = [Sample(*image) for image in FileNames(SYSU_NAME, "p11422_s16929_1.jpg", problems).read(root, folder)]
    return _train_split("cuhk_sysu", samples, root, SYSU_PUBLISHED, strict)


def _train_split(source: str, samples: list[Sample], root: Path, published: Counts, strict: bool) -> DatasetDict:
    """Returns all images as the split `train`, with checked counts."""
    if not samples:
        raise UserError(f"{root}: no image of this set in it: restore the set")
    dataset = DatasetDict(train=make_split(sorted(samples), root=root, source=source))
    check_counts(count_splits(dataset), published, name=source, where=root, strict=strict)
    return dataset
