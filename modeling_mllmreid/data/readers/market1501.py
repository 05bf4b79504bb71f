"""Market-1501's layout: DukeMTMC-reID, Occluded-Duke, PersonX and RandPerson share its folders and file names.

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
class NamedFiles:
    """What tells one such set from another.

    folders: part -> its folder. archive: names of the folder that the archive unpacks to, which holds these. name: the
    whole file name, with the groups `person` and `camera`; example: one such name. published: the counts to check.
    junk: persons that are dropped at load. distractors: whether person 0 is nobody and stands in the gallery alone.
    note: what is said whenever the set is read.
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


def read_named_files(
    spec: NamedFiles,
    data_dir: str | os.PathLike[str],
    *,
    captions_file: str | os.PathLike[str] | None = None,
    extra_gallery: str | None = None,
    strict: bool = False,
    problems: Problems | None = None,
) -> DatasetDict:
    """The parts that are there as `train`, `query` and `gallery`; query and gallery go together.

    `data_dir` holds the parts' folders, or the archive's folder that holds them; `file_name` is relative to the folder
    that holds them. Rows are sorted by file name; other files than images are no rows. captions_file: captions of the
    CUHK-PEDES schema, joined by `file_path`. extra_gallery: a folder inside, whose images join the gallery as nobody.
    The published counts are checked where the folder has the archive's name or a part its published number of
    identities, a mismatch being one warning; `strict` checks always and makes it an error. Raises UserError for a
    missing folder, another layout, an empty part, and an image whose name does not parse.
    """
    problems = problems or Problems()
    root = _root(spec, Path(data_dir))
    names = FileNames(spec.name, spec.example, problems)
    rows = {
        split: _read_part(spec, names, root, split)
        for split, folder in spec.folders.items()
        if os.path.isdir(root / folder)
    }
    if extra_gallery is not None:
        rows.setdefault("gallery", []).extend(_extra(spec, names, root, extra_gallery))
    if captions_file is not None:
        rows = _with_captions(rows, root, captions_file, problems)
    dataset = DatasetDict({split: make_split(part, root=root, source=spec.source) for split, part in rows.items()})
    if spec.published and extra_gallery is None and (strict or _looks_published(spec, root, dataset)):
        check_counts(count_splits(dataset), spec.published, name=spec.title, where=root, strict=strict)
    if spec.note:
        logger.warning("%s: %s", spec.title, spec.note)
    return dataset


def _root(spec: NamedFiles, data_dir: Path) -> Path:
    """The folder that holds the parts."""
    folders = ", ".join(spec.folders.values())
    if not os.path.isdir(data_dir):
        raise UserError(f"{data_dir}: no such folder: give data_dir the folder that holds {folders}")
    for root in (data_dir, *(data_dir / name for name in spec.archive)):
        present = [split for split, folder in spec.folders.items() if os.path.isdir(root / folder)]
        if len({"query", "gallery"} & set(present)) == 1:
            absent = spec.folders["gallery" if "query" in present else "query"]
            raise UserError(f"{root}: no folder {absent}: query and gallery are evaluated together; add it")
        if present:
            return root
    raise UserError(f"{data_dir}: not in {spec.title} layout: give data_dir the folder that holds {folders}")


def _read_part(spec: NamedFiles, names: FileNames, root: Path, split: str) -> list[Sample]:
    folder = spec.folders[split]
    rows = []
    for image in names.read(root, folder):
        if spec.distractors and image.person_id == DISTRACTOR and split != "gallery":
            names.problems.report(
                UserError(f"{root / image.file_name}: person 0 is a distractor of the gallery: number persons from 1")
            )
        elif image.person_id not in spec.junk:
            rows.append(Sample(*image))
    if not rows:
        raise UserError(f"{root / folder}: no person image ({spec.example}) in it: restore the images or remove it")
    return rows


def _extra(spec: NamedFiles, names: FileNames, root: Path, folder: str) -> list[Sample]:
    """The images of a folder as distractors; their cameras are known where their names say them."""
    if not os.path.isdir(safe_join(root, folder)):
        raise UserError(f"{root / folder}: no such folder: give the name of the distractors' folder in {root}")
    rows = []
    for name in image_names(root / folder, names.problems):
        match, camera_id = spec.name.fullmatch(name), UNKNOWN_CAMERA
        try:
            if match is not None:
                camera_id = names.cameras.read(match["camera"], f"{root / folder}/{name}")
        except UserError as problem:
            names.problems.report(problem)
            continue
        rows.append(Sample(f"{folder}/{name}", DISTRACTOR, camera_id))
    if not rows:
        raise UserError(f"{root / folder}: no image in it: restore the distractors or leave the option out")
    return rows


def _with_captions(
    rows: dict[str, list[Sample]], root: Path, captions_file: str | os.PathLike[str], problems: Problems
) -> dict[str, list[Sample]]:
    files = DataFolder(root)
    entries = read_caption_entries(captions_file, files, problems=problems)
    captions = {entry.file_name: entry.captions for entry in entries}
    joined = {
        split: [row._replace(captions=captions.get(row.file_name, ())) for row in part] for split, part in rows.items()
    }
    images = [row for part in joined.values() for row in part]
    captioned = sum(row.file_name in captions for row in images)
    if not captioned:
        raise UserError(
            f"{captions_file}: no entry names an image of {root}: write file_path like {images[0].file_name}"
        )
    for entry in entries:
        # A folder that was left out as a whole is no mistake: one file may caption more parts than are there.
        if not files.has(entry.file_name) and os.path.isdir((root / entry.file_name).parent):
            problems.report(missing_image(captions_file, entry, root))
    if captioned < len(images):
        logger.warning("%s: %d of %d images have no entry", captions_file, len(images) - captioned, len(images))
    return joined


def _looks_published(spec: NamedFiles, root: Path, dataset: DatasetDict) -> bool:
    if os.path.basename(os.path.abspath(root)).startswith((spec.title, *spec.archive)):
        return True
    return any(
        count_split(part)["identities"] == spec.published[split]["identities"]
        for split, part in dataset.items()
        if split in spec.published
    )


FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}

MARKET1501 = NamedFiles(
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
DUKEMTMC = NamedFiles(
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
        "train": {"samples": 15_618, "identities": 702},
        "query": {"samples": 2_210, "identities": 519},
        "gallery": {"samples": 17_661, "identities": 1_110},
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

AnyPath = str | os.PathLike[str]


def read_market1501(
    data_dir: AnyPath,
    *,
    captions_file: AnyPath | None = None,
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
    data_dir: AnyPath, *, captions_file: AnyPath | None = None, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """DukeMTMC-reID (Ristani et al. 2016, Zheng et al. 2017), withdrawn in 2019. Details: `read_named_files`."""
    return read_named_files(DUKEMTMC, data_dir, captions_file=captions_file, strict=strict, problems=problems)


def read_occluded_duke(
    data_dir: AnyPath, *, captions_file: AnyPath | None = None, strict: bool = False, problems: Problems | None = None
) -> DatasetDict:
    """Occluded-Duke (Miao et al. 2019), other parts of the withdrawn DukeMTMC-reID. Details: `read_named_files`."""
    return read_named_files(OCCLUDED_DUKE, data_dir, captions_file=captions_file, strict=strict, problems=problems)


def read_personx(
    data_dir: AnyPath, *, captions_file: AnyPath | None = None, problems: Problems | None = None
) -> DatasetDict:
    """PersonX (Sun and Zheng 2019), computer-generated people. Details: `read_named_files`."""
    return read_named_files(PERSONX, data_dir, captions_file=captions_file, problems=problems)


def read_randperson(
    data_dir: AnyPath, *, captions_file: AnyPath | None = None, problems: Problems | None = None
) -> DatasetDict:
    """RandPerson (Wang et al. 2020), computer-generated people, a training part alone. Details: `read_named_files`."""
    return read_named_files(RANDPERSON, data_dir, captions_file=captions_file, problems=problems)
