"""Splits: validation people, training labels, and train and test people of data that has no splits."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict

from ..utils.errors import UserError
from ..utils.formats import SplitsFile
from ..utils.json_files import read_json
from ..utils.outputs import atomic_file, check_output, new_parents, only_writer
from .contract import SPLITS, UNKNOWN_CAMERA, Problems, join_names, person_names
from .leakage import refuse_shared_people

# The triplet loss needs a second person.
MIN_TRAIN_IDENTITIES = 2


def label_mapping(person_ids: Iterable[int]) -> dict[int, int]:
    """Labels 0..n-1 of the person ids, in sorted order."""
    return {person_id: label for label, person_id in enumerate(sorted(set(person_ids)))}


def split_validation(train: Dataset, *, val_identities: int, seed: int) -> tuple[Dataset, Dataset]:
    """(train, val) without a person in common: `val_identities` people drawn by the seed, whatever the rows' order.

    Raises UserError for an empty split, and for a number of people below 1 or that leaves fewer than two to train on.
    """
    if not len(train):
        raise UserError("the training split is empty: give a data set with training images")
    person_ids = np.asarray(train["person_id"][:], dtype=np.int64)
    identities = np.unique(person_ids)
    most = len(identities) - MIN_TRAIN_IDENTITIES
    if not 1 <= val_identities <= most:
        mend = f"give 1 to {most}" if most >= 1 else "give a training split with more people"
        raise UserError(f"val_identities is {val_identities} of {len(identities)} people in the training split: {mend}")
    chosen = np.random.default_rng(seed).permutation(identities)[:val_identities]
    in_val = np.isin(person_ids, chosen)
    return train.select(np.flatnonzero(~in_val)), train.select(np.flatnonzero(in_val))


def split_query_gallery(val: Dataset, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(query, gallery) of a validation split: one image per person and camera asks, the rest is the gallery.

    An image becomes a query only where that leaves every query of the person a gallery image from another camera; an
    unknown camera (-1) is another camera to all, itself included. Drawn by the seed, whatever the rows' order.
    Raises UserError where no image can be a query.
    """
    columns = (val["person_id"][:], val["camera_id"][:], val["file_name"][:])
    rows = sorted(range(len(val)), key=lambda row: tuple(column[row] for column in columns))
    person_ids, camera_ids, _ = columns
    of_person: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        of_person[person_ids[row]][camera_ids[row]].append(row)
    rng = np.random.default_rng(seed)
    queries: set[int] = set()
    for of_camera in of_person.values():
        left = Counter({camera: len(images) for camera, images in of_camera.items()})
        asking: list[int] = []
        # Cameras with many images first: they can spare one.
        for camera in sorted(of_camera, key=lambda camera: (-len(of_camera[camera]), camera)):
            left[camera] -= 1
            if all(_has_match(other, left) for other in [*asking, camera]):
                asking.append(camera)
                queries.add(of_camera[camera][rng.integers(len(of_camera[camera]))])
            else:
                left[camera] += 1
    if not queries:
        raise UserError(
            "the validation split has no person with images of two cameras: take more validation people, or give "
            f"camera_id {UNKNOWN_CAMERA} to all images where cameras are unknown"
        )
    return val.select(sorted(queries)), val.select([row for row in range(len(val)) if row not in queries])


def _has_match(camera: int, gallery: Counter[int]) -> bool:
    return any(n > 0 and (other != camera or camera == UNKNOWN_CAMERA) for other, n in gallery.items())


TEST_SHARE, SEED = 0.5, 0


def make_splits(
    whole: Dataset,
    splits_file: str | os.PathLike[str],
    *,
    test_share: float | None = None,
    seed: int | None = None,
    problems: Problems | None = None,
) -> DatasetDict:
    """`train`, `query` and `gallery` of one unsplit part, without a person in both training and test.

    The share of the people (None: half) is drawn by the seed (None: 0), whatever the rows' order; one image per person
    and camera asks. The file names of each part, the share and the seed are written to `splits_file`; where it exists,
    it decides and nothing is drawn: a share or seed that is given must then be the file's own. A file that it names and
    that is not in the data is a problem; images that it does not name are in no part, which a note says.
    Raises UserError for a share outside 0 to 1, too few people, and a file that does not fit the data.
    """
    path, problems = Path(splits_file), problems or Problems()
    of_drawing = {"test_share": test_share, "split_seed": seed}
    given = {name: value for name, value in of_drawing.items() if value is not None}
    if os.path.lexists(path):
        made = _as_written(whole, path, given, problems)
    else:
        with _only_drawer(path):
            if os.path.lexists(path):  # another run drew meanwhile
                made = _as_written(whole, path, given, problems)
            else:
                share, seed = TEST_SHARE if test_share is None else test_share, SEED if seed is None else seed
                made = _drawn(whole, path, share, seed)
    note_test_people(made, person_names(whole), path.name, problems)
    _note_what_is_left(whole, made, path, problems)
    return made


@contextmanager
def _only_drawer(path: Path) -> Iterator[None]:
    """Within the block no other run draws splits into the file's folder: each would go on with parts of its own."""
    try:
        check_output(path)
    except UserError as error:
        raise UserError(f"splits_file: {error}") from error
    with new_parents(path), only_writer(path.parent, work="drawing of splits"):
        yield


def _drawn(whole: Dataset, path: Path, test_share: float, seed: int) -> DatasetDict:
    """Parts that are drawn now and written down."""
    if not 0 < test_share < 1:
        raise UserError(f"test_share: {test_share} is no share: use a number between 0 and 1, such as 0.5")
    if seed < 0:
        raise UserError(f"split_seed: {seed} is no seed: use a whole number from 0")
    persons = np.asarray(whole["person_id"][:])
    people = np.unique(persons)
    test = round(test_share * len(people))
    if test < 1 or len(people) - test < 2:
        raise UserError(
            f"{len(people)} people, test_share {test_share}: too few for two to train on and one to test on"
        )
    chosen = np.random.default_rng(seed).permutation(people)[:test]
    in_test = np.isin(persons, chosen)
    query, gallery = split_query_gallery(whole.select(np.flatnonzero(in_test)), seed=seed)
    made = DatasetDict(train=whole.select(np.flatnonzero(~in_test)), query=query, gallery=gallery)
    names = {name: split["file_name"][:] for name, split in made.items()}
    text = json.dumps({"test_share": test_share, "split_seed": seed, **names}, indent=1, ensure_ascii=False) + "\n"
    try:
        with atomic_file(path) as aside:
            aside.write_text(text, encoding="utf-8")
    except UserError as error:
        raise UserError(f"splits_file: {error}") from error
    return made


def _as_written(whole: Dataset, path: Path, given: Mapping[str, float], problems: Problems) -> DatasetDict:
    """The parts that the file names. given: the share and the seed where the user gives them."""
    redraw = "remove the file to draw anew, or give another splits_file"
    content = read_json(path, SplitsFile, remedy=redraw)
    unknown = sorted(content.model_extra or {})
    if unknown:
        raise UserError(f"{path}: part {unknown[0]!r:.60} is unknown: name the parts {', '.join(SPLITS)}")
    for option, value in given.items():
        recorded = getattr(content, option)
        if recorded is None:
            raise UserError(
                f"{path}: does not say its {option}, so that {value} cannot be checked: leave it out, or {redraw}"
            )
        if recorded != value:
            raise UserError(f"{path}: was drawn with {option} {recorded}, not {value}: leave it out, or {redraw}")
    names = {split: getattr(content, split) for split in SPLITS if getattr(content, split)}
    twice = [
        name for name, count in Counter(name for of_split in names.values() for name in of_split).items() if count > 1
    ]
    if twice:
        raise UserError(f"{path}: names {twice[0]!r} more than once: {redraw}")
    rows = {name: row for row, name in enumerate(whole["file_name"][:])}
    for name in (name for of_split in names.values() for name in of_split if name not in rows):
        problems.report(UserError(f"{path}: names {name!r}, which is not in the data: remove the file to draw anew"))
    made = DatasetDict(
        {split: whole.select([rows[name] for name in of_split if name in rows]) for split, of_split in names.items()}
    )
    refuse_shared_people(made, remedy=redraw, where=f"{path}: ")
    return made


def note_test_people(made: Mapping[str, Dataset], people: Iterable[str], where: str, problems: Problems) -> None:
    """Notes how many of the people are tested on, and where the parts come from."""
    tested = {name for split in ("query", "gallery") if split in made for name in person_names(made[split])}
    if tested:
        problems.notes.append(f"tested on {len(tested):,} of {len(set(people)):,} people, parts in {where}")


def _note_what_is_left(whole: Dataset, made: DatasetDict, path: Path, problems: Problems) -> None:
    """Warns of images that are in no part."""
    placed = {name for split in made.values() for name in split["file_name"][:]}
    left = [row for row, name in enumerate(whole["file_name"][:]) if name not in placed]
    if left:
        people = person_names(whole.select(left))
        problems.warn(
            f"{path}: {len(left):,} files of {len(set(people)):,} people are in no part and not used "
            f"({join_names(people)}): remove the file to draw the parts anew, or give another splits_file"
        )
