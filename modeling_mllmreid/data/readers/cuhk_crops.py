"""CUHK02 and CUHK-SYSU as the domain-generalisation protocols use them: person crops to train on, no test part.

CUHK02:     data_dir/ or data_dir/Dataset/ with P1/cam1/001_1.png ... P5/cam2/...   pair, camera, person
CUHK-SYSU:  data_dir/ or data_dir/cropped_images/ with p11422_s16929_1.jpg          person, scene; cropped_image too
"""

import os
import re
from pathlib import Path

from datasets import DatasetDict

from ...errors import UserError
from ..columns import Row, make_split
from ..counts import check_counts, count_parts
from ..problems import Problems
from .file_names import JPG, PNG, FileNames

PAIRS, PAIR_CAMERAS = range(1, 6), (1, 2)
CUHK02_NAME = re.compile(rf"(?P<person>[0-9]+)_[0-9]+{PNG}")
CUHK02_PUBLISHED = {"train": {"rows": 7_264, "identities": 1_816}}
SYSU_NAME = re.compile(rf"p(?P<person>[0-9]+)_[0-9a-z_]+({PNG}|{JPG})")
SYSU_FOLDERS = ("cropped_images", "cropped_image")
SYSU_PUBLISHED = {"train": {"rows": 34_574, "identities": 11_934}}
# Persons are numbered anew in each pair of CUHK02.
PERSONS_OF_A_PAIR = 10_000


def read_cuhk02(
    data_dir: str | os.PathLike[str], *, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """CUHK02 (Li and Wang 2013), all of it as `train`: person 10,000 x pair + number, ten cameras, two of each pair.

    Raises UserError for another layout and a name that does not parse.
    """
    problems, root = problems or Problems(), Path(data_dir)
    root = root if os.path.isdir(root / "P1") else root / "Dataset"
    rows: list[Row] = []
    for pair in PAIRS:
        names = FileNames(CUHK02_NAME, "001_1.png", problems)
        for camera in PAIR_CAMERAS:
            folder = f"P{pair}/cam{camera}"
            if not os.path.isdir(root / folder):
                raise UserError(f"{root / folder}: no such folder: give data_dir the folder that holds P1 to P5")
            for image in names.read(root, folder):
                if image.person_id >= PERSONS_OF_A_PAIR:
                    problems.report(
                        UserError(
                            f"{root / image.file_name}: person {image.person_id} would be one of another pair's: "
                            f"number persons below {PERSONS_OF_A_PAIR}"
                        )
                    )
                    continue
                person_id = PERSONS_OF_A_PAIR * pair + image.person_id
                rows.append(Row(image.file_name, person_id, 2 * pair + camera - 2))
    return _train("cuhk02", rows, root, CUHK02_PUBLISHED, strict)


def read_cuhk_sysu(
    data_dir: str | os.PathLike[str], *, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """Person crops of CUHK-SYSU (Xiao et al. 2017), all of them as `train`; cameras are unknown.

    Raises UserError for another layout and a name that does not parse.
    """
    problems, root = problems or Problems(), Path(data_dir)
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder: give data_dir the folder that holds {SYSU_FOLDERS[0]}")
    folder = next((name for name in SYSU_FOLDERS if os.path.isdir(root / name)), ".")
    rows = [Row(*image) for image in FileNames(SYSU_NAME, "p11422_s16929_1.jpg", problems).read(root, folder)]
    return _train("cuhk_sysu", rows, root, SYSU_PUBLISHED, strict)


def _train(source: str, rows: list[Row], root: Path, published: dict, strict: bool) -> DatasetDict:
    if not rows:
        raise UserError(f"{root}: no image of this set in it: restore the set")
    dataset = DatasetDict(train=make_split(sorted(rows), root=root, source=source))
    check_counts(count_parts(dataset), published, name=source, where=root, strict=strict)
    return dataset
