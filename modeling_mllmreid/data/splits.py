"""Splits: training labels, validation people, queries and gallery, and the splits of data that has none."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ..utils.data_formats import SplitsFile
from ..utils.errors import UserError
from ..utils.json_files import read_json
from ..utils.outputs import atomic_file, check_output, new_parents, only_writer
from .contract import SPLITS, UNKNOWN_CAMERA, Problems, join_names, person_names
from .leakage import refuse_shared_people

# The triplet loss needs two people.
MIN_TRAIN_IDENTITIES = 2


def label_mapping(person_ids: Iterable[int]) -> dict[int, int]:
    """Maps person ids to training labels.

    Args:
        person_ids (`Iterable[int]`): the person of each image.

    Returns:
        `dict[int, int]`: person id -> label from 0 to n - 1, in the sorted order of the ids.
    """
    return {person_id: label for label, person_id in enumerate(sorted(set(person_ids)))}


def split_validation(train: Dataset, *, val_identities: int, seed: int) -> tuple[Dataset, Dataset]:
    """Moves random people from the training split to a validation split. The order of the rows has no influence.

    Args:
        train (`Dataset`): the training split.
        val_identities (`int`): the number of people to move.
        seed (`int`): the seed of the draw.

    Returns:
        `tuple[Dataset, Dataset]`: train and val, without a person in common.

    Raises:
        UserError: the split is empty, `val_identities` is below 1, or fewer than two people remain to train on.
    """
    if not len(train):
        raise UserError("the training split is empty: give a data set with training images")
    person_ids = np.asarray(train["person_id"][:], dtype=np.int64)
    identities = np.unique(person_ids)
    limit = len(identities) - MIN_TRAIN_IDENTITIES
    if not 1 <= val_identities <= limit:
        fix = f"give 1 to {limit}" if limit >= 1 else "give a training split with more people"
        raise UserError(f"val_identities is {val_identities} of {len(identities)} people in the training split: {fix}")
    chosen = np.random.default_rng(seed).permutation(identities)[:val_identities]
    in_val = np.isin(person_ids, chosen)
    return train.select(np.flatnonzero(~in_val)), train.select(np.flatnonzero(in_val))


def split_query_gallery(val: Dataset, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Divides a split into queries, one random image per person and camera, and a gallery of the other images.

    An image becomes a query only if every query of the person keeps a gallery image of another camera. The unknown
    camera (-1) differs from every camera, itself included. The order of the rows has no influence.

    Args:
        val (`Dataset`): a split of the data contract.
        seed (`int`, defaults to 0): the seed of the draw.

    Returns:
        `tuple[Dataset, Dataset]`: query and gallery.

    Raises:
        UserError: no image can be a query.
    """
    columns = (val["person_id"][:], val["camera_id"][:], val["file_name"][:])
    rows = sorted(range(len(val)), key=lambda row: tuple(column[row] for column in columns))
    person_ids, camera_ids, _ = columns
    rows_by_person: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        rows_by_person[person_ids[row]][camera_ids[row]].append(row)
    rng = np.random.default_rng(seed)
    queries: set[int] = set()
    for rows_by_camera in rows_by_person.values():
        gallery = Counter({camera: len(images) for camera, images in rows_by_camera.items()})
        query_cameras: list[int] = []
        # Cameras with many images come first, because they lose least.
        for camera in sorted(rows_by_camera, key=lambda camera: (-len(rows_by_camera[camera]), camera)):
            gallery[camera] -= 1
            if all(_has_match(other, gallery) for other in [*query_cameras, camera]):
                query_cameras.append(camera)
                queries.add(rows_by_camera[camera][rng.integers(len(rows_by_camera[camera]))])
            else:
                gallery[camera] += 1
    if not queries and len(rows) == len(rows_by_person):
        raise UserError("each person has one image: a query needs another one to find, so give two or more of a person")
    if not queries:
        raise UserError(
            "the split has no person with images of two cameras: take more people, or give "
            f"camera_id {UNKNOWN_CAMERA} to all images where cameras are unknown"
        )
    return val.select(sorted(queries)), val.select([row for row in range(len(val)) if row not in queries])


def _has_match(camera: int, gallery: Counter[int]) -> bool:
    """Returns whether the gallery has an image of another camera. gallery: camera -> number of images."""
    return any(n > 0 and (other != camera or camera == UNKNOWN_CAMERA) for other, n in gallery.items())


TEST_SHARE, SEED = 0.5, 0


def make_splits(
    unsplit: Dataset,
    splits_file: str | os.PathLike[str],
    *,
    test_share: float | None = None,
    seed: int | None = None,
    new_people: str | None = None,
    problems: Problems | None = None,
) -> DatasetDict:
    """Makes the splits `train`, `query` and `gallery` of data that has none.

    No person is in both training and test. The first run draws the test people, and one query per person and camera,
    and writes the file names of each split, the share and the seed to `splits_file`. Later runs read this file and draw
    nothing: images that it does not name are in no split, and files that are gone are left out. The order of the rows
    has no influence.

    Args:
        unsplit (`Dataset`): all images.
        splits_file (`str` or `os.PathLike`): the JSON file that records the splits.
        test_share (`float`, *optional*): the share of the people to test on (0.5). It must equal that of the file.
        seed (`int`, *optional*): the seed of the draw (0). It must equal that of the file.
        new_people (`str`, *optional*): `"train"` adds the images that `splits_file` does not name to `train`, except
            those of test people, and writes the file again: the test stays the same.
        problems (`Problems`, *optional*): receives notes about the files of `splits_file` that the data does not have,
            and about the images that are in no split.

    Returns:
        `DatasetDict`: the splits.

    Raises:
        UserError: the share is not between 0 and 1, there are too few people, or the file does not fit the data: it is
            broken, or nothing of a split is left.
    """
    path, problems = Path(splits_file), problems or Problems()
    settings = {"test_share": test_share, "split_seed": seed}
    given_settings = {name: value for name, value in settings.items() if value is not None}
    if os.path.lexists(path):
        dataset = _read_splits(unsplit, path, given_settings, problems)
    else:
        with _split_lock(path):
            if os.path.lexists(path):  # another run wrote it meanwhile
                dataset = _read_splits(unsplit, path, given_settings, problems)
            else:
                share, seed = TEST_SHARE if test_share is None else test_share, SEED if seed is None else seed
                dataset = _draw_splits(unsplit, path, share, seed)
    if new_people == "train":
        dataset = _with_new_people(unsplit, dataset, path)
    note_test_people(dataset, person_names(unsplit), path.name, problems)
    _note_unused_images(unsplit, dataset, path, problems)
    return dataset


@contextmanager
def _split_lock(path: Path) -> Iterator[None]:
    """Prevents other runs from drawing splits into this folder, so that all runs use the same ones."""
    try:
        check_output(path)
    except UserError as error:
        raise UserError(f"splits_file: {error}") from error
    with new_parents(path), only_writer(path.parent, work="drawing of splits"):
        yield


def _draw_splits(unsplit: Dataset, path: Path, test_share: float, seed: int) -> DatasetDict:
    """Draws the splits and writes them to the file."""
    if not 0 < test_share < 1:
        raise UserError(f"test_share: {test_share} is not a share: use a number between 0 and 1, such as 0.5")
    if seed < 0:
        raise UserError(f"split_seed: {seed} is not a seed: use a whole number from 0")
    persons = np.asarray(unsplit["person_id"][:])
    people = np.unique(persons)
    num_test = round(test_share * len(people))
    if num_test < 1 or len(people) - num_test < 2:
        raise UserError(
            f"{len(people)} people, test_share {test_share}: too few for two to train on and one to test on"
        )
    chosen = np.random.default_rng(seed).permutation(people)[:num_test]
    in_test = np.isin(persons, chosen)
    query, gallery = split_query_gallery(unsplit.select(np.flatnonzero(in_test)), seed=seed)
    dataset = DatasetDict(train=unsplit.select(np.flatnonzero(~in_test)), query=query, gallery=gallery)
    names = {name: split["file_name"][:] for name, split in dataset.items()}
    _write_splits(path, {"test_share": test_share, "split_seed": seed, **names})
    return dataset


def _write_splits(path: Path, content: Mapping[str, Any]) -> None:
    """Writes the settings of the draw and the file names of each split."""
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except UserError as error:
        raise UserError(f"splits_file: {error}") from error


def _with_new_people(unsplit: Dataset, dataset: DatasetDict, path: Path) -> DatasetDict:
    """Returns the splits with the images of no split in `train`, except those of test people; adds them to the file."""
    _, new = _unused_rows(unsplit, dataset)
    if not new:
        return dataset
    names = unsplit["file_name"][:]
    added = [names[row] for row in new]
    rows = {name: row for row, name in enumerate(names)}
    known = dataset["train"]["file_name"][:] if "train" in dataset else []
    with _split_lock(path):
        # With the names of files that are gone, which may come back.
        content = read_json(path, SplitsFile).model_dump(exclude_none=True)
        _write_splits(path, {**content, "train": [*content.get("train", []), *added]})
    # In the order of the file, so that a training continues.
    return DatasetDict({**dataset, "train": unsplit.select([rows[name] for name in [*known, *added]])})


def _read_splits(unsplit: Dataset, path: Path, given_settings: Mapping[str, float], problems: Problems) -> DatasetDict:
    """Returns the splits of the file. given_settings: the share and the seed, if the user gives them."""
    redraw = "remove the file to draw the splits again, or give another splits_file"
    content = read_json(path, SplitsFile, remedy=redraw)
    unknown = sorted(content.model_extra or {})
    if unknown:
        raise UserError(f"{path}: split {unknown[0]!r:.60} is unknown: name the splits {', '.join(SPLITS)}")
    for option, value in given_settings.items():
        recorded = getattr(content, option)
        if recorded is None:
            raise UserError(
                f"{path}: does not record its {option}, so that {value} cannot be checked: leave it out, or {redraw}"
            )
        if recorded != value:
            raise UserError(f"{path}: was drawn with {option} {recorded}, not {value}: leave it out, or {redraw}")
    names = {split: getattr(content, split) for split in SPLITS if getattr(content, split)}
    all_names = [name for split_names in names.values() for name in split_names]
    repeated = [name for name, count in Counter(all_names).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: names {repeated[0]!r} more than once: {redraw}")
    rows = {name: row for row, name in enumerate(unsplit["file_name"][:])}
    if missing := [name for name in all_names if name not in rows]:
        gone = f"{path}: {len(missing):,} of its files are not in the data ({join_names(missing)})"
        for split, split_names in names.items():
            if not rows.keys() & set(split_names):
                raise UserError(f"{gone}, and nothing of {split} is left: give the folder that it was drawn for")
        problems.warn(f"{gone} and left out")
    dataset = DatasetDict(
        {
            split: unsplit.select([rows[name] for name in split_names if name in rows])
            for split, split_names in names.items()
        }
    )
    refuse_shared_people(dataset, remedy=redraw, where=f"{path}: ")
    return dataset


def note_test_people(dataset: Mapping[str, Dataset], people: Iterable[str], origin: str, problems: Problems) -> None:
    """Adds a note: how many of the people are in the test splits, and where the splits come from."""
    names = {name for split in ("query", "gallery") if split in dataset for name in person_names(dataset[split])}
    if names:
        problems.notes.append(f"tested on {len(names):,} of {len(set(people)):,} people, splits in {origin}")


def _unused_rows(unsplit: Dataset, dataset: Mapping[str, Dataset]) -> tuple[list[int], list[int]]:
    """Returns the rows of images that are in no split: those of people of the test or val, and the others."""
    used = {name for split in dataset.values() for name in split["file_name"][:]}
    tested = {person for name, split in dataset.items() if name != "train" for person in split["person_id"][:]}
    rows: tuple[list[int], list[int]] = ([], [])
    for row, (name, person) in enumerate(zip(unsplit["file_name"][:], unsplit["person_id"][:], strict=True)):
        if name not in used:
            rows[person not in tested].append(row)
    return rows


def _note_unused_images(unsplit: Dataset, dataset: DatasetDict, path: Path, problems: Problems) -> None:
    """Warns about images that are in no split: of people of the test, and of others, who can join the training."""
    names = person_names(unsplit)
    of_test, new = ([names[row] for row in rows] for rows in _unused_rows(unsplit, dataset))
    if new:
        people = len(set(new))
        redraw = ", or remove the file to draw all splits again" if people > len(set(names)) / 2 else ""
        problems.warn(
            f"{path}: {len(new):,} files of {people:,} people are in no split and not used ({join_names(new)}): set "
            f"new_people to train to train on them, which keeps the test{redraw}"
        )
    if of_test:
        problems.warn(f"{path}: {len(of_test):,} new files of people of the test are not used ({join_names(of_test)})")
