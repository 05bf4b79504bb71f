"""CUHK03 by its new protocol, from extracted images or straight from the archive's `cuhk-03.mat`.

data_dir/                      or data_dir/cuhk03_release/
    cuhk03_new_protocol_config_detected.mat, cuhk03_new_protocol_config_labeled.mat
    images_detected/, images_labeled/     1_001_1_01.png   (pair of cameras, person in it, view, image)
    cuhk-03.mat                           where there are no images: they are extracted once, beside it
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

from ...errors import UserError
from ...outputs import folder_aside
from ..columns import Row, make_split
from ..counts import check_counts, count_parts
from ..images import list_images
from ..problems import Problems
from .data_folder import DataFolder, shown_path
from .file_names import PNG
from .matlab_files import load_matlab, texts, whole_numbers

SOURCE = "cuhk03"
ARCHIVE = "cuhk03_release"
# boxes -> the word that the archive has for them
WORDS = {"detected": "detected", "labelled": "labeled"}
FOLDERS = {boxes: f"images_{word}" for boxes, word in WORDS.items()}
CONFIGS = {boxes: f"cuhk03_new_protocol_config_{word}.mat" for boxes, word in WORDS.items()}
# pair, person in the pair, view, image
NAME = re.compile(r"(?P<pair>[0-9]+)_(?P<person>[0-9]+)_(?P<camera>[12])_(?P<image>[0-9]+)" + PNG)
INDEXES = {"train": "train_idx", "query": "query_idx", "gallery": "gallery_idx"}
PUBLISHED = {
    "detected": {
        "train": {"rows": 7_365, "identities": 767},
        "query": {"rows": 1_400, "identities": 700},
        "gallery": {"rows": 5_332, "identities": 700},
    },
    "labelled": {
        "train": {"rows": 7_368, "identities": 767},
        "query": {"rows": 1_400, "identities": 700},
        "gallery": {"rows": 5_328, "identities": 700},
    },
}
# In the archive each person has ten images, five from each view.
IMAGES_OF_VIEW = 5


def read_cuhk03(
    data_dir: str | os.PathLike[str],
    *,
    boxes: Literal["detected", "labelled"] = "detected",
    strict: bool = False,
    problems: Problems | None = None,
) -> DatasetDict:
    """CUHK03-NP (Li et al. 2014; protocol of Zhong et al. 2017) as `train`, `query` and `gallery`.

    boxes: people as a detector found them, or as they were labelled by hand. The camera is the view (1 or 2), not the
    pair of cameras. Published counts are checked, a mismatch being one warning; `strict` makes it an error. Needs
    h5py to extract the archive (the extra `mat`).
    Raises UserError for a missing file, a name that does not parse, an image that is missing, and a missing package.
    """
    if boxes not in FOLDERS:
        raise UserError(f"boxes: unknown {boxes!r}: use one of {', '.join(FOLDERS)}")
    problems, root = problems or Problems(), _root(Path(data_dir), boxes)
    folder = FOLDERS[boxes]
    if not _has_images(root / folder):
        try:
            extract_images(root / "cuhk-03.mat", root / folder, WORDS[boxes])
        except UserError:
            # Another process may have extracted them meanwhile.
            if not _has_images(root / folder):
                raise
    # torchreid's folder has the archive's folder and the protocol's file side by side.
    places = [root / CONFIGS[boxes], Path(data_dir, CONFIGS[boxes])]
    config = next((path for path in places if os.path.isfile(path)), places[0])
    parts = _parts(config, DataFolder(root / folder), problems)
    dataset = DatasetDict({split: make_split(sorted(rows), root=root, source=SOURCE) for split, rows in parts.items()})
    check_counts(count_parts(dataset), PUBLISHED[boxes], name=f"CUHK03-NP, {boxes}", where=root, strict=strict)
    return dataset


def extract_images(archive: Path, folder: Path, key: str) -> None:
    """Writes the images of `cuhk-03.mat` under this key as PNG files into a folder, which appears when it is whole.

    Raises UserError for an archive that cannot be read, and where the folder cannot be written.
    """
    with folder_aside(folder) as aside:
        for name, pixels in _archived_images(archive, key, folder.name):
            Image.fromarray(pixels).save(aside / name)


def _archived_images(archive: Path, key: str, what: str) -> Iterator[tuple[str, np.ndarray]]:
    """(name, pixels) of every image in the archive."""
    try:
        import h5py
    except ImportError as error:
        raise UserError("cuhk-03.mat needs h5py, which is not installed: pip install 'mllmreid[mat]'") from error
    try:
        with h5py.File(archive) as mat:
            pairs = [mat[reference] for reference in np.ravel(mat[key])]
            for pair, cells in enumerate(tqdm(pairs, desc=f"extracting {what}", unit="pair"), start=1):
                # MATLAB's order: a row is an image's place, a column a person.
                for place, person in np.ndindex(cells.shape):
                    pixels = mat[cells[place, person]][()]
                    if pixels.ndim == 3 and pixels.size:
                        if pixels.dtype != np.uint8 or pixels.shape[0] != 3:
                            raise ValueError(f"pixels of kind {pixels.dtype}, shape {pixels.shape}")
                        view = 1 if place < IMAGES_OF_VIEW else 2
                        yield f"{pair}_{person + 1:03d}_{view}_{place + 1:02d}.png", pixels.T
    except Exception as error:  # HDF5 reports broken bytes as OSError, KeyError, RuntimeError, TypeError, ...
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{archive}: not readable as CUHK03's archive ({reason}): restore the file") from error


def _parts(path: Path, files: DataFolder, problems: Problems) -> dict[str, list[Row]]:
    """The rows of each part by the protocol's file."""
    wanted = ["filelist", "labels", *INDEXES.values()]
    config = load_matlab(path, wanted, remedy="put the new protocol's file there")
    missing = [key for key in wanted if key not in config]
    if missing:
        raise UserError(f"{path}: holds no {', '.join(missing)}: give the new protocol's file")
    names = texts(config["filelist"], f"{path}: filelist")
    persons = whole_numbers(config["labels"], f"{path}: labels")
    folder = files.root.name
    parts: dict[str, list[Row]] = {}
    for split, key in INDEXES.items():
        parts[split] = []
        indexes = [number - 1 for number in whole_numbers(config[key], f"{path}: {key}")]  # counted from 1
        listed = [names[index] for index in indexes if 0 <= index < min(len(names), len(persons))]
        if len(set(listed)) < len(indexes):
            raise UserError(f"{path}: {key} repeats an image or names none: give the new protocol's file")
        for index, name in zip(indexes, listed, strict=True):
            match = NAME.fullmatch(name)
            if match is None or not files.has(name):
                reason = "not a name like 1_001_1_01.png" if match is None else f"no such image in {files.root}"
                problems.report(UserError(f"{path}: {shown_path(name[:80])}: {reason}: restore the set"))
                continue
            parts[split].append(Row(f"{folder}/{name}", persons[index], int(match["camera"])))
    return parts


def _has_images(folder: Path) -> bool:
    return os.path.isdir(folder) and bool(list_images(folder).names)


def _root(data_dir: Path, boxes: str) -> Path:
    """The folder that holds the protocol and the images or the archive."""
    for root in (data_dir, data_dir / ARCHIVE):
        if _has_images(root / FOLDERS[boxes]) or os.path.isfile(root / "cuhk-03.mat"):
            return root
    raise UserError(
        f"{data_dir}: no {FOLDERS[boxes]} and no cuhk-03.mat: give data_dir the folder that holds one of them"
    )
