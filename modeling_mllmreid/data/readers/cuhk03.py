"""CUHK03 by its new protocol, from extracted images or straight from the archive's `cuhk-03.mat`.

data_dir/                      or data_dir/cuhk03_release/
    cuhk03_new_protocol_config_detected.mat, cuhk03_new_protocol_config_labeled.mat
    images_detected/, images_labeled/     1_001_1_01.png   (pair of cameras, person in it, view, image)
    cuhk-03.mat                           where there are no images: they are extracted once, beside it
"""

import os
import re
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import DatasetDict
from PIL import Image
from tqdm.auto import tqdm

from ...errors import UserError
from ..columns import Row, make_split
from ..counts import check_counts, count_parts
from ..problems import Problems

SOURCE = "cuhk03"
ARCHIVE = "cuhk03_release"
# boxes -> the word that the archive has for them
WORDS = {"detected": "detected", "labelled": "labeled"}
FOLDERS = {boxes: f"images_{word}" for boxes, word in WORDS.items()}
CONFIGS = {boxes: f"cuhk03_new_protocol_config_{word}.mat" for boxes, word in WORDS.items()}
# pair, person in the pair, view, image
NAME = re.compile(r"(?P<pair>[0-9]+)_(?P<person>[0-9]+)_(?P<camera>[12])_(?P<image>[0-9]+)\.png")
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
    scipy, and h5py to extract the archive (the extra `mat`).
    Raises UserError for a missing file, a name that does not parse, an image that is missing, and a missing package.
    """
    if boxes not in FOLDERS:
        raise UserError(f"boxes: unknown {boxes!r}: use one of {', '.join(FOLDERS)}")
    problems, root = problems or Problems(), _root(Path(data_dir), boxes)
    folder = FOLDERS[boxes]
    if not (root / folder).is_dir():
        extract_images(root / "cuhk-03.mat", root / folder, WORDS[boxes])
    config = _config(root / CONFIGS[boxes])
    names = [str(np.asarray(name).item()) for name in np.ravel(config["filelist"])]
    persons = np.ravel(config["labels"]).astype(int)
    parts: dict[str, list[Row]] = {}
    for split, key in INDEXES.items():
        parts[split] = []
        indexes = np.ravel(config[key]).astype(int) - 1  # counted from 1
        known = np.isin(indexes, np.arange(min(len(names), len(persons))))
        if not known.all() or len(np.unique(indexes)) < len(indexes):
            raise UserError(
                f"{root / CONFIGS[boxes]}: {key} repeats an image or names none: give the new protocol's file"
            )
        for index in indexes:
            name = names[index]
            match = NAME.fullmatch(name)
            if match is None or not (root / folder / name).is_file():
                reason = "not a name like 1_001_1_01.png" if match is None else f"no such image in {root / folder}"
                problems.report(UserError(f"{root / CONFIGS[boxes]}: {name}: {reason}: restore the set"))
                continue
            parts[split].append(Row(f"{folder}/{name}", int(persons[index]), int(match["camera"])))
    dataset = DatasetDict({split: make_split(sorted(rows), root=root, source=SOURCE) for split, rows in parts.items()})
    check_counts(count_parts(dataset), PUBLISHED[boxes], name=f"CUHK03-NP, {boxes}", where=root, strict=strict)
    return dataset


def extract_images(archive: Path, folder: Path, key: str) -> None:
    """Writes the images of `cuhk-03.mat` under this key as PNG files into a folder, which appears when it is whole."""
    try:
        import h5py
    except ImportError as error:
        raise UserError("cuhk-03.mat needs h5py, which is not installed: pip install 'mllmreid[mat]'") from error
    aside = folder.with_name(f".{folder.name}.part")
    aside.mkdir(parents=True, exist_ok=True)
    try:
        with h5py.File(archive) as mat:
            pairs = [mat[reference] for reference in np.ravel(mat[key])]
            for pair, cells in enumerate(tqdm(pairs, desc=f"extracting {folder.name}", unit="pair"), start=1):
                # MATLAB's order: a row is an image's place, a column a person.
                for place, person in np.ndindex(cells.shape):
                    pixels = mat[cells[place, person]][()]
                    if pixels.ndim == 3 and pixels.size:
                        view = 1 if place < IMAGES_OF_VIEW else 2
                        name = f"{pair}_{person + 1:03d}_{view}_{place + 1:02d}.png"
                        Image.fromarray(pixels.T.astype(np.uint8)).save(aside / name)
    except (OSError, KeyError, ValueError) as error:
        shutil.rmtree(aside)
        raise UserError(f"{archive}: not readable as CUHK03's archive ({error}): restore the file") from error
    os.replace(aside, folder)


def _root(data_dir: Path, boxes: str) -> Path:
    """The folder that holds the protocol and the images or the archive."""
    for root in (data_dir, data_dir / ARCHIVE):
        if (root / FOLDERS[boxes]).is_dir() or (root / "cuhk-03.mat").is_file():
            return root
    raise UserError(
        f"{data_dir}: no {FOLDERS[boxes]} and no cuhk-03.mat: give data_dir the folder that holds one of them"
    )


def _config(path: Path) -> dict[str, Any]:
    """The protocol's file."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError("CUHK03 needs scipy, which is not installed: pip install 'mllmreid[mat]'") from error
    if not path.is_file():
        raise UserError(f"{path}: no such file: put the new protocol's file there")
    try:
        config = loadmat(path)
    except (ValueError, NotImplementedError, OSError) as error:
        raise UserError(f"{path}: not readable ({error}): restore the file") from error
    missing = [key for key in ("filelist", "labels", *INDEXES.values()) if key not in config]
    if missing:
        raise UserError(f"{path}: holds no {', '.join(missing)}: give the new protocol's file")
    return config
