"""Any data set of the `datasets` library, from the Hub or from disk, by naming which of its columns is which."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetDict, Image, Value, load_dataset

from ..errors import UserError
from .columns import FEATURES, SPLITS, UNKNOWN_CAMERA, number_names
from .splits import query_gallery_parts

REQUIRED = ("image", "person_id")
OPTIONAL = {"track_id": Value("int64"), "clothes_id": Value("int64")}
# What others call the parts.
NAMES = {"validation": "val", "dev": "val"}


def read_mapped(name: str, columns: Mapping[str, str], *, revision: str | None = None) -> DatasetDict:
    """The data set with the columns of the data contract.

    name: what `datasets.load_dataset` takes. columns: contract column -> the data set's column; image and person_id are
    needed, columns of the contract's own name need no entry. Persons and cameras may be numbers or texts; texts are
    numbered in sorted order over all parts, `person_name` keeps the persons'. Without cameras all are unknown (-1). A
    part `test` gives `query` and `gallery`, one image per person and camera asking.
    Raises UserError for a data set that cannot be loaded, a column that is missing or of another kind.
    """
    unknown = sorted(set(columns) - {*FEATURES, *OPTIONAL})
    if unknown:
        raise UserError(f"columns: {unknown[0]!r} is no column of ours: use {', '.join([*FEATURES, *OPTIONAL])}")
    try:
        loaded = load_dataset(name, revision=revision)
    except Exception as error:  # the library raises whatever its builder, the network or the files raised
        raise UserError(f"data set {name}: cannot be loaded ({' '.join(str(error).split())[:200]})") from error
    parts = {NAMES.get(str(split), str(split)): part for split, part in loaded.items()}
    renamed = {split: _renamed(part, columns, f"{name}, part {split}") for split, part in parts.items()}
    numbers = {}
    for column in ("person_id", "camera_id"):
        parts_with = [part for part in renamed.values() if column in part.column_names]
        numbers[column] = number_names(value for part in parts_with for value in part[column])
    made = {split: _with_contract(part, split, name, numbers) for split, part in renamed.items()}
    if "test" in made:
        made["query"], made["gallery"] = query_gallery_parts(made.pop("test"))
    foreign = sorted(set(made) - set(SPLITS))
    if foreign:
        raise UserError(f"data set {name}: part {foreign[0]!r} is unknown: name the parts among {', '.join(SPLITS)}")
    return DatasetDict(made)


def _renamed(part: Dataset, columns: Mapping[str, str], where: str) -> Dataset:
    """The part with the columns that are ours, under our names."""
    wanted = {column: columns.get(column, column) for column in (*FEATURES, *OPTIONAL)}
    for column, theirs in wanted.items():
        if theirs not in part.column_names and (column in columns or column in REQUIRED):
            raise UserError(
                f"data set {where}: no column {theirs!r} for {column}, but {', '.join(part.column_names)}: name it in "
                f'columns, such as {{"{column}": "{part.column_names[0]}"}}'
            )
    known = {theirs: column for column, theirs in wanted.items() if theirs in part.column_names}
    return part.select_columns(list(known)).rename_columns({old: new for old, new in known.items() if old != new})


def _with_contract(part: Dataset, split: str, name: str, numbers: Mapping[str, Mapping[Any, int]]) -> Dataset:
    """The part with all columns of the contract, of its types."""
    count = len(part)
    persons = part["person_id"][:]
    values: dict[str, list] = {"person_id": [numbers["person_id"][person] for person in persons]}
    cameras = part["camera_id"][:] if "camera_id" in part.column_names else [None] * count
    values["camera_id"] = [numbers["camera_id"].get(camera, UNKNOWN_CAMERA) for camera in cameras]
    for column in ("caption", "continuation"):
        texts = part[column][:] if column in part.column_names else [None] * count
        listed = [[text] if isinstance(text, str) else text or [] for text in texts]
        values[column] = [[text for text in of_row if text.strip()] for of_row in listed]
    values["source"] = [name] * count
    has_names = "file_name" in part.column_names
    values["file_name"] = part["file_name"][:] if has_names else [f"{split}/{row:06d}" for row in range(count)]
    made = part.select_columns(["image"])
    if not isinstance(made.features["image"], Image):
        try:
            made = made.cast_column("image", Image())
        except (TypeError, ValueError) as error:
            raise UserError(f"data set {name}: the image column is {part.features['image']}: give images") from error
    for column, feature in FEATURES.items():
        if column != "image":
            made = made.add_column(column, values[column], feature=feature)
    for column, feature in OPTIONAL.items():
        if column in part.column_names:
            made = made.add_column(column, part[column][:], feature=feature)
    if any(isinstance(person, str) for person in persons):
        made = made.add_column("person_name", persons, feature=Value("string"))
    return made
