"""The layout of Market-1501, which DukeMTMC-reID, Occluded-Duke, PersonX and RandPerson share.

data_dir/                      or data_dir/Market-1501-v15.09.15/, data_dir/DukeMTMC-reID/, ...
    bounding_box_train/        0002_c1s1_000451_03.jpg   (Market-1501: person, camera, sequence, frame, box)
    query/                     0005_c2_f0046985.jpg      (DukeMTMC-reID, Occluded-Duke: person, camera, frame)
    bounding_box_test/         0001_c1s1_01.jpg          (PersonX: person, camera, scene, image)
data_dir/randperson_subset/    000000_s00_c00_f000228.jpg (RandPerson: person, scene, camera, frame)
"""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datasets import DatasetDict

from ...utils.errors import UserError
from ..contract import UNKNOWN_CAMERA, Problems, Sample, check_counts, count_split, count_splits, make_split
from ..images import safe_join
from .caption_sets import missing_image, read_caption_entries
from .file_names import JPG, DataFolder, FileNames, image_names

logger = logging.getLogger(__name__)


DISTRACTOR = 0


@dataclass(frozen=True)
class MarketLayout:
    """The folders and file names of one data set.

    Args:
        source (`str`): the reader's name.
        title (`str`): the published name.
        folders (`Mapping[str, str]`): split -> folder.
        archive (`tuple[str, ...]`): names of the folder that the archive unpacks to, which contains these folders.
        name (`re.Pattern`): the pattern of a file name, with the groups `person` and `camera`.
        example (`str`): a file name for messages.
        published (`Counts`): the published counts of each split.
        junk (`frozenset[int]`): persons that are left out.
        distractors (`bool`): whether person 0 marks distractors, which only the gallery may have.
        note (`str`): a warning to log when the data set is read.
    """

    source: str
    title: str
    folders: Mapping[str, str]
    archive: tuple[str, ...]
    name: re.Pattern[str]
    example: str
    published: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    junk: frozenset[int] = frozenset()
    distractors: bool = False
    note: str = ""


def read_market_layout(
    spec: MarketLayout,
    data_dir: str | os.PathLike[str],
    *,
    captions_file: str | os.PathLike[str] | None = None,
    extra_gallery: str | None = None,
    strict: bool = False,
    problems: Problems | None = None,
) -> DatasetDict:
    """Reads the splits that exist as `train`, `query` and `gallery`; query and gallery must both exist or not.

    The images of a split are sorted by file name. The published counts are checked if the folder has the archive's name
    or a split has its published number of identities.

    Args:
        spec (`MarketLayout`): the layout.
        data_dir (`str` or `os.PathLike`): the folder with the folders of the splits, or with the archive's folder.
        captions_file (`str` or `os.PathLike`, *optional*): captions in the schema of CUHK-PEDES, joined by `file_path`.
        extra_gallery (`str`, *optional*): a folder in `data_dir` whose images join the gallery as distractors.
        strict (`bool`, defaults to `False`): always check the counts, and raise and not warn if they differ.
        problems (`Problems`, *optional*): collects the images that cannot be used.

    Returns:
        `DatasetDict`: the splits. `file_name` is relative to the folder with the folders of the splits.

    Raises:
        UserError: a folder is missing, the layout is another one, a split is empty, or a file name does not match.
    """
    problems = problems or Problems()
    root = _root(spec, Path(data_dir))
    names = FileNames(spec.name, spec.example, problems)
    samples = {
        split: _read_split(spec, names, root, split)
        for split, folder in spec.folders.items()
        if os.path.isdir(root / folder)
    }
    if extra_gallery is not None:
        samples.setdefault("gallery", []).extend(_read_distractors(spec, names, root, extra_gallery))
    if captions_file is not None:
        samples = _with_captions(samples, root, captions_file, problems)
    dataset = DatasetDict({name: make_split(split, root=root, source=spec.source) for name, split in samples.items()})
    if spec.published and extra_gallery is None and (strict or _looks_published(spec, root, dataset)):
        check_counts(count_splits(dataset), spec.published, name=spec.title, where=root, strict=strict)
    if spec.note:
        logger.warning("%s: %s", spec.title, spec.note)
    return dataset


def _root(spec: MarketLayout, data_dir: Path) -> Path:
    """Returns the folder with the folders of the splits."""
    folders = ", ".join(spec.folders.values())
    if not os.path.isdir(data_dir):
        raise UserError(f"{data_dir}: no such folder: give data_dir the folder with {folders}")
    for root in (data_dir, *(data_dir / name for name in spec.archive)):
        present = [split for split, folder in spec.folders.items() if os.path.isdir(root / folder)]
        if len({"query", "gallery"} & set(present)) == 1:
            absent = spec.folders["gallery" if "query" in present else "query"]
            raise UserError(f"{root}: no folder {absent}: query and gallery are evaluated together: add it")
        if present:
            return root
    raise UserError(f"{data_dir}: not in {spec.title} layout: give data_dir the folder with {folders}")


def _read_split(spec: MarketLayout, names: FileNames, root: Path, split: str) -> list[Sample]:
    """Returns the images of one split, without junk."""
    folder = spec.folders[split]
    samples = []
    for image in names.read(root, folder):
        if spec.distractors and image.person_id == DISTRACTOR and split != "gallery":
            names.problems.report(
                UserError(f"{root / image.file_name}: person 0 is a distractor of the gallery: number persons from 1")
            )
        elif image.person_id not in spec.junk:
            samples.append(Sample(*image))
    if not samples:
        raise UserError(f"{root / folder}: no person image ({spec.example}) in it: restore the images or remove it")
    return samples


def _read_distractors(spec: MarketLayout, names: FileNames, root: Path, folder: str) -> list[Sample]:
    """Returns the images of a folder as distractors, with the cameras that their names contain."""
    if not os.path.isdir(safe_join(root, folder)):
        raise UserError(f"{root / folder}: no such folder: give the name of the distractors' folder in {root}")
    samples = []
    for name in image_names(root / folder, names.problems):
        match, camera_id = spec.name.fullmatch(name), UNKNOWN_CAMERA
        try:
            if match is not None:
                camera_id = names.cameras.read(match["camera"], f"{root / folder}/{name}")
        except UserError as problem:
            names.problems.report(problem)
            continue
        samples.append(Sample(f"{folder}/{name}", DISTRACTOR, camera_id))
    if not samples:
        raise UserError(f"{root / folder}: no image in it: restore the distractors or leave the option out")
    return samples


def _with_captions(
    samples: dict[str, list[Sample]], root: Path, captions_file: str | os.PathLike[str], problems: Problems
) -> dict[str, list[Sample]]:
    """Joins the captions of a captions file to the images by file name."""
    files = DataFolder(root)
    entries = read_caption_entries(captions_file, files, problems=problems)
    captions = {entry.file_name: entry.captions for entry in entries}
    joined = {
        name: [sample._replace(captions=captions.get(sample.file_name, ())) for sample in split]
        for name, split in samples.items()
    }
    images = [sample for split in joined.values() for sample in split]
    num_captioned = sum(sample.file_name in captions for sample in images)
    if not num_captioned:
        raise UserError(
            f"{captions_file}: no entry names an image of {root}: write file_path like {images[0].file_name}"
        )
    for entry in entries:
        # A missing folder is not a problem: the captions file may cover more splits than the folder has.
        if not files.has(entry.file_name) and os.path.isdir((root / entry.file_name).parent):
            problems.report(missing_image(captions_file, entry, root))
    if num_captioned < len(images):
        logger.warning("%s: %d of %d images have no entry", captions_file, len(images) - num_captioned, len(images))
    return joined


def _looks_published(spec: MarketLayout, root: Path, dataset: DatasetDict) -> bool:
    """Returns whether the folder's name or a number of identities is the published one."""
    if os.path.basename(os.path.abspath(root)).startswith((spec.title, *spec.archive)):
        return True
    return any(
        count_split(split)["identities"] == spec.published[name]["identities"]
        for name, split in dataset.items()
        if name in spec.published
    )


FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}

MARKET1501 = MarketLayout(
    source="market1501",
    title="Market-1501",
    folders=FOLDERS,
    archive=("Market-1501-v15.09.15",),
    name=re.compile(rf"(?P<person>-1|[0-9]+)_c(?P<camera>[0-9]+)s[0-9]+_[0-9]+_[0-9]+{JPG}"),
    example="0002_c1s1_000451_03.jpg",
    published={
        "train": {"samples": 12_936, "identities": 751},
        "query": {"samples": 3_368, "identities": 750},
        "gallery": {"samples": 15_913, "identities": 751},
    },
    junk=frozenset({-1}),
    distractors=True,
)
DUKE_NAME = re.compile(rf"(?P<person>[0-9]+)_c(?P<camera>[0-9]+)_f[0-9]+{JPG}")
DUKEMTMC = MarketLayout(
    source="dukemtmc",
    title="DukeMTMC-reID",
    folders=FOLDERS,
    archive=("DukeMTMC-reID",),
    name=DUKE_NAME,
    example="0005_c2_f0046985.jpg",
    published={
        "train": {"samples": 16_522, "identities": 702},
        "query": {"samples": 2_228, "identities": 702},
        "gallery": {"samples": 17_661, "identities": 1_110},
    },
    note="withdrawn by its authors in 2019, because the people in it had not consented: consider another data set",
)
OCCLUDED_DUKE = MarketLayout(
    source="occluded_duke",
    title="Occluded-Duke",
    folders=FOLDERS,
    archive=("Occluded_Duke", "Occluded-DukeMTMC-reID"),
    name=DUKE_NAME,
    example="0005_c2_f0046985.jpg",
    published={
        "train": {"samples": 15_618, "identities": 702},
        "query": {"samples": 2_210, "identities": 519},
        "gallery": {"samples": 17_661, "identities": 1_110},
    },
    note="made of DukeMTMC-reID, which its authors withdrew in 2019: consider another data set",
)
PERSONX = MarketLayout(
    source="personx",
    title="PersonX",
    folders=FOLDERS,
    archive=("PersonX",),
    name=re.compile(rf"(?P<person>[0-9]+)_c(?P<camera>[0-9]+)s[0-9]+(_[0-9]+)+{JPG}"),
    example="0001_c1s1_01.jpg",
)
RANDPERSON = MarketLayout(
    source="randperson",
    title="RandPerson",
    folders={"train": "randperson_subset"},
    archive=("RandPerson",),
    name=re.compile(rf"(?P<person>[0-9]+)_s[0-9]+_c(?P<camera>[0-9]+)_f[0-9]+{JPG}"),
    example="000000_s00_c00_f000228.jpg",
)

AnyPath = str | os.PathLike[str]


def read_market1501(
    data_dir: AnyPath,
    *,
    captions_file: AnyPath | None = None,
    distractors: str | None = None,
    strict: bool = False,
    problems: Problems | None = None,
) -> DatasetDict:
    """Reads Market-1501 (Zheng et al. 2015), without junk (person -1), with distractors (person 0) in the gallery.

    distractors: the folder in `data_dir` with the 500,000 additional distractors. Other arguments: see
    `read_market_layout`.
    """
    return read_market_layout(
        MARKET1501,
        data_dir,
        captions_file=captions_file,
        extra_gallery=distractors,
        strict=strict,
        problems=problems,
    )


def read_dukemtmc(
    data_dir: AnyPath, *, captions_file: AnyPath | None = None, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """Reads DukeMTMC-reID (Ristani et al. 2016, Zheng et al. 2017), withdrawn in 2019. See `read_market_layout`."""
    return read_market_layout(DUKEMTMC, data_dir, captions_file=captions_file, strict=strict, problems=problems)


def read_occluded_duke(
    data_dir: AnyPath, *, captions_file: AnyPath | None = None, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """Reads Occluded-Duke (Miao et al. 2019): other splits of DukeMTMC-reID. See `read_market_layout`."""
    return read_market_layout(OCCLUDED_DUKE, data_dir, captions_file=captions_file, strict=strict, problems=problems)


def read_personx(
    data_dir: AnyPath, *, captions_file: AnyPath | None = None, problems: Problems | None = None
) -> DatasetDict:
    """Reads PersonX (Sun and Zheng 2019): computer-generated people. See `read_market_layout`."""
    return read_market_layout(PERSONX, data_dir, captions_file=captions_file, problems=problems)


def read_randperson(
    data_dir: AnyPath, *, captions_file: AnyPath | None = None, problems: Problems | None = None
) -> DatasetDict:
    """Reads RandPerson (Wang et al. 2020): computer-generated people, only `train`. See `read_market_layout`."""
    return read_market_layout(RANDPERSON, data_dir, captions_file=captions_file, problems=problems)
