"""A user's own data: one folder per person, or images with a metadata table.

    data_dir/ANNA/1.jpg, data_dir/BEN/1.jpg           `folders`: no splits; `data.splits.make_splits` makes them
    data_dir/{train,val,query,gallery}/ANNA/1.jpg     `folders`: with splits
    data_dir/metadata.csv | .jsonl | .parquet         `table`: one row per image, with the columns file_name, person_id,
                                                      and optionally camera_id, caption, split, track_id, clothes_id
Ids may be numbers or names (see `contract.number_names`). The columns `person_name` and `camera_name` keep the original
ones. A camera, track or clothes id that is -1 or an empty cell is unknown.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from datasets import Dataset, DatasetDict

from ...utils.errors import UserError
from ..contract import (
    OPTIONAL_FEATURES,
    SPLITS,
    UNKNOWN_CAMERA,
    Problems,
    Sample,
    id_text,
    is_utf8,
    join_names,
    known_id_text,
    make_split,
    number_names,
)
from ..images import OWN_FILES, is_hidden, list_images, safe_join
from .caption_sets import MAX_CAPTION
from .metadata import read_metadata

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


# The name of the only split of data without splits.
UNSPLIT = "all"
LONGEST_PATH = 300
UNKNOWN_PERSON = "-1"
REQUIRED, OPTIONAL = ("file_name", "person_id"), ("camera_id", "caption", "split", "track_id", "clothes_id")
# Column of ids -> the function that returns the name in a cell.
IDS: Mapping[str, Callable[[Any], str | None]] = {
    "person_id": id_text,
    "camera_id": known_id_text,
    "track_id": known_id_text,
    "clothes_id": known_id_text,
}

SampleWithColumns = tuple[Sample, Mapping[str, Any]]  # a sample, and its values of the optional columns


def read_folders(data_dir: str | os.PathLike[str], *, problems: Problems | None = None) -> DatasetDict:
    """Reads one folder per person. The cameras are unknown (-1), so the evaluation excludes no image by its camera.

    Sub-folders with the names of splits are the splits. Otherwise, the only split is "all". Hidden files and folders
    are ignored, and other files that are not images are left out with a warning.

    Args:
        data_dir (`str` or `os.PathLike`): the folder.
        problems (`Problems`, *optional*): collects the persons without images, the images outside the persons' folders
            or in sub-folders of them, and the names that are not UTF-8.

    Returns:
        `DatasetDict`: the splits.

    Raises:
        UserError: the folder does not exist, or a split has no person with images.
    """
    root, problems = Path(data_dir), problems or Problems()
    if not os.path.isdir(root):
        raise UserError(f"{_shown(root)}: no such folder: give data_dir the folder with one folder per person")
    split_folders = {split: split for split in SPLITS if os.path.isdir(root / split)} or {UNSPLIT: "."}
    if UNSPLIT not in split_folders:
        for name in _folders(root):
            if name not in split_folders:
                problems.report(
                    UserError(
                        f"{_shown(root / name)}: next to the splits {', '.join(split_folders)}: move it into one of "
                        f"them, or give it the name of a split ({', '.join(SPLITS)})"
                    )
                )
        _files_outside(root, "the folders of the splits", problems)
    images: dict[str, list[tuple[str, str]]] = {}
    left_out: list[str] = []
    if UNSPLIT in split_folders and not _folders(root) and (loose := list_images(root).names):
        raise UserError(
            f"{_shown(root)}: {len(loose):,} images and no folder of a person: move each image into a folder with the "
            "name of its person, like ANNA/1.jpg, or write a metadata table and give the data set as table"
        )
    for split, folder in split_folders.items():
        images[split] = []
        left_out += _files_outside(root / folder, "the persons' folders", problems)
        for person in _folders(root / folder):
            names, others = _person_images(root / folder / person, problems)
            images[split] += [(str(PurePosixPath(folder, person, name)), person) for name in names]
            left_out += [str(PurePosixPath(folder, person, name)) for name in others]
        if not images[split]:
            raise UserError(f"{root / folder}: no person's folder with images: give a folder like ANNA/1.jpg")
    if tables := [name for name in left_out if name in TABLES]:
        problems.warn(f"{root / tables[0]}: is not read by `folders`: give the data set as table to use it")
        left_out = [name for name in left_out if name not in TABLES]
    if left_out:
        problems.warn(f"{root}: {len(left_out):,} files are not images and left out: {join_names(left_out)}")
    persons = [person for split_images in images.values() for _, person in split_images]
    _warn_about_unknown(persons, root, problems)
    numbers = _numbers(persons, root)
    splits = {
        split: [(Sample(file_name, numbers[person]), {"person_name": person}) for file_name, person in split_images]
        for split, split_images in images.items()
    }
    return _dataset(splits, root, "folders")


def _folders(folder: Path) -> list[str]:
    """Returns the sorted names of the sub-folders, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir() and not is_hidden(entry.name))
    except OSError as error:
        raise UserError(f"{_shown(folder)}: cannot be listed ({error.strerror}): give a readable folder") from error


def _files_outside(folder: Path, where: str, problems: Problems) -> list[str]:
    """Returns the other files next to the folders of persons or splits. Images next to them are problems."""
    images = list_images(folder)
    for name in images.names:
        problems.report(UserError(f"{_shown(folder / name)}: next to {where}: move it into one of them"))
    return [name for name in images.left_out if (folder / name).is_file() and name not in OWN_FILES]


def _person_images(folder: Path, problems: Problems) -> tuple[list[str], list[str]]:
    """Returns the images and the other files in a person's folder. A folder that cannot be used is a problem."""
    if not is_utf8(folder.name):
        problems.report(UserError(f"{_shown(folder)}: the name is not UTF-8 text: rename the folder"))
        return [], []
    images = list_images(folder)
    names = [name for name in images.names if is_utf8(name)]
    for name in images.names:
        if not is_utf8(name):
            problems.report(UserError(f"{_shown(folder / name)}: the name is not UTF-8 text: rename the file"))
    for inner in _folders(folder):
        inner_images = list_images(folder / inner).names
        if inner_images:
            problems.report(
                UserError(
                    f"{_shown(folder / inner)}: {len(inner_images):,} images in a sub-folder of a person's folder: "
                    "move them up, or write a metadata table, which can name cameras"
                )
            )
    if not images.names:
        problems.report(UserError(f"{folder}: no image in it: add some or remove the folder"))
    return names, images.left_out


def _shown(path: Path) -> str:
    """Returns a path for a message: one line, bytes that are not UTF-8 escaped, at most `LONGEST_PATH` characters."""
    text = str(path) if str(path).isprintable() else repr(str(path))
    return text if len(text) <= LONGEST_PATH else f"{text[:LONGEST_PATH]}..."


def _warn_about_unknown(people: Sequence[object], where: Path, problems: Problems) -> None:
    """Warns about a person "-1", which marks junk images in Market-1501."""
    count = people.count(UNKNOWN_PERSON)
    if count:
        problems.warn(
            f"{where}: {count:,} images are of the person {UNKNOWN_PERSON!r}, which is one person here: if it means "
            "unknown, leave them out, or use them only in the gallery"
        )


def _numbers(names: Sequence[str | None], where: Path) -> dict[str, int]:
    """Maps names to numbers. Raises UserError that names the folder or the table."""
    try:
        return number_names(names)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def read_table(data_dir: str | os.PathLike[str], *, problems: Problems | None = None) -> DatasetDict:
    """Reads images with a metadata table, in the order of the table.

    Without the column `split`, the only split is "all". The captions of several rows of one image are joined. An image
    may also be in query and gallery. Unknown columns are left out with a warning.

    Args:
        data_dir (`str` or `os.PathLike`): the folder of the table and the images.
        problems (`Problems`, *optional*): collects the rows that cannot be used.

    Returns:
        `DatasetDict`: the splits.

    Raises:
        UserError: the table is missing, cannot be read or has a wrong column, or no row can be used.
    """
    root, problems = Path(data_dir), problems or Problems()
    present = [name for name in TABLES if os.path.isfile(root / name)]
    if len(present) != 1:
        tables = " and ".join(present) or "none"
        raise UserError(f"{_shown(root)}: {tables} of {', '.join(TABLES)}: give data_dir a folder with one of them")
    table = root / present[0]
    columns, unknown = read_metadata(table, (*REQUIRED, *OPTIONAL), REQUIRED)
    if unknown:
        problems.warn(f"{table}: columns that are not used: {join_names(unknown)} (known: {', '.join(columns)})")
    ids = {
        column: [_name_or_error(IDS[column], column, cell) for cell in columns[column]]
        for column in IDS
        if column in columns
    }
    numbers = {
        column: _numbers([name for name in names if isinstance(name, str)], table) for column, names in ids.items()
    }
    _warn_about_unknown(ids["person_id"], table, problems)
    splits: dict[str, dict[str, SampleWithColumns]] = {}
    persons: dict[str, str] = {}
    for index in range(len(columns["file_name"])):
        values = {column: cells[index] for column, cells in columns.items()}
        id_names = {column: names[index] for column, names in ids.items()}
        try:
            split, sample, optional = _parse_row(values, id_names, root, numbers)
            person = optional["person_name"]
            if persons.setdefault(sample.file_name, person) != person:
                both = f"{persons[sample.file_name]!r} and {person!r}"
                raise UserError(f"{sample.file_name} shows {both}: give one person_id")
            _add_sample(splits.setdefault(split, {}), sample, optional)
        except UserError as problem:
            problems.report(UserError(f"{table}: row {index + 1}: {problem}"))
    splits = {split: samples for split, samples in splits.items() if samples}
    if not splits:
        raise UserError(f"{table}: no row can be used: give rows with {', '.join(REQUIRED)}")
    return _dataset({split: list(samples.values()) for split, samples in splits.items()}, root, "table")


def _add_sample(split: dict[str, SampleWithColumns], sample: Sample, optional: Mapping[str, Any]) -> None:
    """Adds an image to a split, or its captions to the same image. Raises UserError if two rows of it differ."""
    if sample.file_name in split:
        first, first_optional = split[sample.file_name]
        same = first._replace(captions=()) == sample._replace(captions=()) and first_optional == optional
        if not same or set(sample.captions) <= set(first.captions):
            raise UserError(f"{sample.file_name} has a row already: keep one, or give it another caption")
        sample = sample._replace(captions=first.captions + sample.captions)
    split[sample.file_name] = (sample, optional)


def _name_or_error(to_name: Callable[[Any], str | None], column: str, cell: Any) -> str | None | UserError:
    """Returns the name in a cell, or the error."""
    try:
        return to_name(cell)
    except UserError as problem:
        return UserError(f"{column} {problem}")


def _parse_row(
    values: Mapping[str, Any],
    id_names: Mapping[str, str | None | UserError],
    root: Path,
    numbers: Mapping[str, Mapping[str, int]],
) -> tuple[str, Sample, dict[str, Any]]:
    """Returns the split, the sample and the optional columns of one row of the table."""
    for name in id_names.values():
        if isinstance(name, UserError):
            raise name
    names: dict[str, str | None] = {
        column: name for column, name in id_names.items() if not isinstance(name, UserError)
    }
    file_name, person = values["file_name"], names["person_id"]
    if not isinstance(file_name, str) or not file_name or person is None:
        raise UserError(f"file_name {file_name!r:.200}, person_id {values['person_id']!r:.60}: give both")
    if not _is_file(root, file_name):
        raise UserError(f"there is no image {_shown(root / file_name)}: restore it or remove the row")
    split = values.get("split", UNSPLIT)
    if "split" in values and split not in SPLITS:
        raise UserError(f"split {split!r:.60} is unknown: give {', '.join(SPLITS)}")
    captions = values.get("caption")
    captions = [] if captions in (None, "") else captions if isinstance(captions, list) else [captions]
    if not all(isinstance(text, str) and is_utf8(text) and 0 < len(text.strip()) < MAX_CAPTION for text in captions):
        raise UserError(f"caption: not a text of 1 to {MAX_CAPTION - 1:,} characters: fix or remove it")
    optional: dict[str, Any] = {"person_name": person}
    camera = UNKNOWN_CAMERA
    if "camera_id" in names:
        camera = _number(numbers["camera_id"], names["camera_id"])
        optional["camera_name"] = names["camera_id"]
    for column in ("track_id", "clothes_id"):
        if column in names:
            optional[column] = _number(numbers[column], names[column])
    file_name = PurePosixPath(file_name).as_posix()
    return split, Sample(file_name, numbers["person_id"][person], camera, tuple(captions)), optional


def _number(numbers: Mapping[str, int], name: str | None) -> int:
    """Returns the number of a camera, track or clothes; -1 if it is unknown."""
    return -1 if name is None else numbers[name]


def _is_file(root: Path, name: str) -> bool:
    """Returns whether the name is a file in the folder. Raises UserError for a path that leaves the folder."""
    return is_utf8(name) and os.path.isfile(safe_join(root, name))


def _dataset(splits: Mapping[str, Sequence[SampleWithColumns]], root: Path, source: str) -> DatasetDict:
    """Builds splits of the data contract with their optional columns."""
    dataset: dict[str, Dataset] = {}
    for name, samples in splits.items():
        split = make_split([sample for sample, _ in samples], root=root, source=source)
        for column in samples[0][1]:
            values = [optional[column] for _, optional in samples]
            split = split.add_column(column, values, feature=OPTIONAL_FEATURES[column])
        dataset[name] = split
    return DatasetDict(dataset)
