"""Market-1501, DukeMTMC-reID, Occluded-Duke, PersonX and RandPerson: the sets in Market-1501's layout.

data_dir/                      or data_dir/Market-1501-v15.09.15/, data_dir/DukeMTMC-reID/, ...
    bounding_box_train/        0002_c1s1_000451_03.jpg   (Market-1501: person, camera, sequence, frame, box)
    query/                     0005_c2_f0046985.jpg      (DukeMTMC-reID, Occluded-Duke: person, camera, frame)
    bounding_box_test/         0001_c1s1_01.jpg          (PersonX: person, camera, scene, image)
data_dir/randperson_subset/    000000_s00_c00_f000228.jpg (RandPerson: person, scene, camera, frame)
"""

import os
import re

from datasets import DatasetDict

from ..problems import Problems
from .file_names import JPG
from .named_files import NamedFiles, read_named_files

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}

MARKET1501 = NamedFiles(
    source="market1501",
    title="Market-1501",
    folders=FOLDERS,
    archive=("Market-1501-v15.09.15",),
    name=re.compile(rf"(?P<person>-1|[0-9]+)_c(?P<camera>[0-9]+)s[0-9]+_[0-9]+_[0-9]+{JPG}"),
    example="0002_c1s1_000451_03.jpg",
    published={
        "train": {"rows": 12_936, "identities": 751},
        "query": {"rows": 3_368, "identities": 750},
        "gallery": {"rows": 15_913, "identities": 751},
    },
    junk=frozenset({-1}),
    distractors=True,
)
DUKE_NAME = re.compile(rf"(?P<person>[0-9]+)_c(?P<camera>[0-9]+)_f[0-9]+{JPG}")
DUKEMTMC = NamedFiles(
    source="dukemtmc",
    title="DukeMTMC-reID",
    folders=FOLDERS,
    archive=("DukeMTMC-reID",),
    name=DUKE_NAME,
    example="0005_c2_f0046985.jpg",
    published={
        "train": {"rows": 16_522, "identities": 702},
        "query": {"rows": 2_228, "identities": 702},
        "gallery": {"rows": 17_661, "identities": 1_110},
    },
    note="withdrawn by its authors in 2019, since those pictured had not consented: think of using another set",
)
OCCLUDED_DUKE = NamedFiles(
    source="occluded_duke",
    title="Occluded-Duke",
    folders=FOLDERS,
    archive=("Occluded_Duke", "Occluded-DukeMTMC-reID"),
    name=DUKE_NAME,
    example="0005_c2_f0046985.jpg",
    published={
        "train": {"rows": 15_618, "identities": 702},
        "query": {"rows": 2_210, "identities": 519},
        "gallery": {"rows": 17_661, "identities": 1_110},
    },
    note="made of DukeMTMC-reID, which its authors withdrew in 2019: think of using another set",
)
PERSONX = NamedFiles(
    source="personx",
    title="PersonX",
    folders=FOLDERS,
    archive=("PersonX",),
    name=re.compile(rf"(?P<person>[0-9]+)_c(?P<camera>[0-9]+)s[0-9]+(_[0-9]+)+{JPG}"),
    example="0001_c1s1_01.jpg",
)
RANDPERSON = NamedFiles(
    source="randperson",
    title="RandPerson",
    folders={"train": "randperson_subset"},
    archive=("RandPerson",),
    name=re.compile(rf"(?P<person>[0-9]+)_s[0-9]+_c(?P<camera>[0-9]+)_f[0-9]+{JPG}"),
    example="000000_s00_c00_f000228.jpg",
)

Path = str | os.PathLike[str]


def read_market1501(
    data_dir: Path,
    *,
    captions_file: Path | None = None,
    distractors: str | None = None,
    strict: bool = False,
    problems: Problems | None = None,
) -> DatasetDict:
    """Market-1501 (Zheng et al. 2015). Junk (person -1) is dropped, distractors (person 0) stay in the gallery.

    distractors: the folder inside `data_dir` that holds the 500,000 further distractors. The rest: `read_named_files`.
    """
    return read_named_files(
        MARKET1501,
        data_dir,
        captions_file=captions_file,
        extra_gallery=distractors,
        strict=strict,
        problems=problems,
    )


def read_dukemtmc(
    data_dir: Path, *, captions_file: Path | None = None, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """DukeMTMC-reID (Ristani et al. 2016, Zheng et al. 2017), withdrawn in 2019. Details: `read_named_files`."""
    return read_named_files(DUKEMTMC, data_dir, captions_file=captions_file, strict=strict, problems=problems)


def read_occluded_duke(
    data_dir: Path, *, captions_file: Path | None = None, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """Occluded-Duke (Miao et al. 2019), other parts of the withdrawn DukeMTMC-reID. Details: `read_named_files`."""
    return read_named_files(OCCLUDED_DUKE, data_dir, captions_file=captions_file, strict=strict, problems=problems)


def read_personx(data_dir: Path, *, captions_file: Path | None = None, problems: Problems | None = None) -> DatasetDict:
    """PersonX (Sun and Zheng 2019), computer-generated people. Details: `read_named_files`."""
    return read_named_files(PERSONX, data_dir, captions_file=captions_file, problems=problems)


def read_randperson(
    data_dir: Path, *, captions_file: Path | None = None, problems: Problems | None = None
) -> DatasetDict:
    """RandPerson (Wang et al. 2020), computer-generated people, a training part alone. Details: `read_named_files`."""
    return read_named_files(RANDPERSON, data_dir, captions_file=captions_file, problems=problems)
