"""Data sets of the `datasets` library, from the Hub or from disk, with a mapping of their columns."""

import os
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Image, List, Value, load_dataset, load_dataset_builder
from datasets.packaged_modules.csv.csv import Csv
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilder

from ..utils.errors import UserError
from .contract import (
    FEATURES,
    OPTIONAL_FEATURES,
    SPLITS,
    id_text,
    known_id_text,
    number_names,
    refuse_rounded,
    refuse_rows_without_image,
)
from .local_files import (
    are_shards,
    complete_splits,
    error_summary,
    file_names,
    read_shards,
    refuse_archives,
    refuse_outside_paths,
    with_absolute_paths,
)
from .splits import split_query_gallery

REQUIRED = ("image", "person_id")
IDS = {"person_id": id_text, "camera_id": known_id_text, "track_id": known_id_text, "clothes_id": known_id_text}
MAPPED_COLUMNS = (*FEATURES, "track_id", "clothes_id")
# Other names of the splits.
SPLIT_NAMES = {"validation": "val", "dev": "val"}

Names = Mapping[str, list[str | None]]  # column of ids -> the name in each row


def read_mapped(name: str, columns: Mapping[str, str], *, revision: str | None = None) -> DatasetDict:
    """Reads a data set and converts it to the columns of the data contract.

    Ids may be numbers, texts or class labels. They are numbered over all splits (see `contract.number_names`), and the
    columns `person_name` and `camera_name` keep the names. Without cameras, all cameras are unknown (-1). A split
    `test` is divided into `query`, with one image per person and camera, and `gallery`.

    Args:
        name (`str`): the first argument of `datasets.load_dataset`. A folder is read without the library's cache.
        columns (`Mapping[str, str]`): column of the contract -> column of the data set. `image` and `person_id` are
            required. A column with the same name needs no entry.
        revision (`str`, *optional*): the revision on the Hub.

    Returns:
        `DatasetDict`: the splits.

    Raises:
        UserError: the data set cannot be loaded, a split is unknown, or a column is missing or has another type.
    """
    _check_mapping(columns)
    loaded = _load(name, columns, revision)
    selected: dict[str, Dataset] = {}
    for original_name, split in loaded.items():
        split_name = SPLIT_NAMES.get(str(original_name), str(original_name))
        if split_name in selected:
            names_of_all = ", ".join(map(str, loaded))
            raise UserError(f"data set {name}: two splits are named {split_name} ({names_of_all}): rename one")
        where = f"{name}, split {original_name}"
        selected[split_name] = _with_images(_select_columns(split, columns, where), name, where)
    names = {key: _id_names(split, f"data set {name}, split {key}") for key, split in selected.items()}
    numbers = _number_ids(names, name)
    id_columns = [column for column in IDS if any(column in split_names for split_names in names.values())]
    dataset = {
        key: _with_contract(split, f"{name}, split {key}", key, _source(name), names[key], numbers, id_columns)
        for key, split in selected.items()
    }
    if "test" in dataset:
        if {"query", "gallery"} & set(dataset):
            raise UserError(f"data set {name}: has {', '.join(dataset)}: test means query and gallery: rename one")
        dataset["query"], dataset["gallery"] = split_query_gallery(dataset.pop("test"))
    unknown = sorted(set(dataset) - set(SPLITS))
    if unknown:
        raise UserError(f"data set {name}: split {unknown[0]!r} is unknown: name the splits among {', '.join(SPLITS)}")
    return DatasetDict(dataset)


def _check_mapping(columns: Mapping[str, str]) -> None:
    """Raises UserError for an unknown column, a value that is not a name, and a column that is named twice."""
    unknown = sorted(set(columns) - set(MAPPED_COLUMNS))
    if unknown:
        raise UserError(f"columns: {unknown[0]!r} is not a column of the contract: use {', '.join(MAPPED_COLUMNS)}")
    for column, original in columns.items():
        if not isinstance(original, str):
            raise UserError(f"columns: {column} is {original!r:.60}: give the name of a column")
    repeated = [original for original, count in Counter(columns.values()).items() if count > 1]
    if repeated:
        raise UserError(f"columns: {repeated[0]!r} is named for two columns: name it once")


def _number_ids(names: Mapping[str, Names], dataset_name: str) -> dict[str, dict[str, int]]:
    """Numbers the names of each column of ids over all splits. names: split -> its names."""
    numbers = {}
    for column in IDS:
        all_names = [text for split_names in names.values() for text in split_names.get(column, [])]
        try:
            numbers[column] = number_names(all_names)
        except UserError as error:
            raise UserError(f"data set {dataset_name}: column {column}: {error}") from None
    return numbers


def _source(name: str) -> str:
    """Returns the content of the column `source`: the name, or the last part of a folder's path."""
    return Path(name).resolve().name if os.path.exists(name) else name


def _load(name: str, columns: Mapping[str, str], revision: str | None) -> DatasetDict:
    """Loads the original data set. Ids in CSV files are read as text."""
    path = Path(name)
    if os.path.isfile(path):
        raise UserError(f"data set {name}: is a file: give its folder")
    if are_shards(path / "data"):
        return read_shards(path / "data")
    is_folder = os.path.isdir(path)
    options: dict[str, Any] = {"path": str(path.absolute())} if is_folder else {"path": name, "revision": revision}
    try:
        with TemporaryDirectory(prefix="mllmreid-") if is_folder else nullcontext() as cache:
            # The default cache identifies a folder by its last name, and keeps the old content after a change.
            options |= {"cache_dir": cache} if is_folder else {}
            builder = load_dataset_builder(**options)
            complete_splits(file_names(builder), f"data set {name}")
            if isinstance(builder, Csv):
                # The library would read "01" and ids of 20 digits as numbers, and "NA" as an empty cell.
                options |= {"keep_default_na": False, "na_values": [""]}
                options["converters"] = dict.fromkeys((columns.get(column, column) for column in IDS), str)
            loaded = load_dataset(**options, keep_in_memory=is_folder)
            if cache is not None:
                refuse_archives(loaded, Path(cache), name)
    except UserError:
        raise
    except Exception as error:  # errors of the builder, the network and the files have no common type
        raise UserError(f"data set {name}: cannot be loaded ({error_summary(error)})") from error
    if not isinstance(loaded, DatasetDict):
        raise UserError(f"data set {name}: has no splits: give one that is not streamed")
    if isinstance(builder, FolderBasedBuilder):
        _refuse_guessed_numbers(name, builder, loaded, columns)
    return loaded


def _refuse_guessed_numbers(
    name: str, builder: FolderBasedBuilder, loaded: DatasetDict, columns: Mapping[str, str]
) -> None:
    """Raises UserError if ids of a metadata.csv were read as numbers: "01" and "1" would be one person."""
    if "metadata.csv" not in file_names(builder):
        return
    for split in loaded.values():
        for column in IDS:
            feature = split.features.get(columns.get(column, column))
            if isinstance(feature, Value) and feature.dtype != "string":
                raise UserError(
                    f"data set {name}: ids of a metadata.csv lose leading zeros here: read the folder with the reader "
                    "table, or save the metadata as metadata.jsonl"
                )


def _select_columns(split: Dataset, columns: Mapping[str, str], where: str) -> Dataset:
    """Selects the columns of the contract and gives them the contract's names."""
    mapped = set(columns.values())
    originals = {column: columns.get(column, column) for column in MAPPED_COLUMNS}
    new_names: dict[str, str] = {}
    for column, original in originals.items():
        if original not in split.column_names and (column in columns or column in REQUIRED):
            example = split.column_names[0] if split.column_names else "x"
            raise UserError(
                f"data set {where}: no column {original!r} for {column}, but {', '.join(split.column_names)}: "
                f'name it in columns, such as {{"{column}": "{example}"}}'
            )
        # A column with a name of the contract that is mapped to another column is not used twice.
        if original in split.column_names and (column in columns or original not in mapped):
            new_names[original] = column
    selected = split.select_columns(list(new_names))
    return selected.rename_columns({old: new for old, new in new_names.items() if old != new})


def _id_names(split: Dataset, where: str) -> Names:
    """Returns the names in the columns of ids of a split."""
    names: dict[str, list[str | None]] = {}
    for column, to_name in IDS.items():
        if column not in split.column_names:
            continue
        feature = split.features[column]
        if not isinstance(feature, Value | ClassLabel):
            raise UserError(f"{where}: column {column} is {feature!s:.100}: give one text or number per row")
        refuse_rounded(split.with_format("arrow")[:][column], f"{where}: column {column}")
        labels = feature.names if isinstance(feature, ClassLabel) else None
        names[column] = []
        for row, value in enumerate(split[column][:]):
            if labels is not None:
                value = labels[value] if isinstance(value, int) and 0 <= value < len(labels) else None
            try:
                names[column].append(to_name(value))
            except UserError as error:
                raise UserError(f"{where}, row {row + 1}: {column} {error}") from None
            if column == "person_id" and names[column][-1] is None:
                raise UserError(f"{where}, row {row + 1}: has no person_id: give one or remove the row")
    return names


def _with_contract(
    split: Dataset,
    where: str,
    split_name: str,
    source: str,
    names: Names,
    numbers: Mapping[str, Mapping[str, int]],
    id_columns: list[str],
) -> Dataset:
    """Builds the columns of the contract, and the optional columns of ids that a split of the data set has."""
    count = len(split)

    def id_numbers(column: str) -> list[int]:
        return [-1 if name is None else numbers[column][name] for name in names.get(column, [None] * count)]

    values: dict[str, list[Any]] = {column: id_numbers(column) for column in {"person_id", "camera_id", *id_columns}}
    for column in ("caption", "continuation"):
        values[column] = _texts(split, column, where)
    values["source"] = [source] * count
    values["file_name"] = [f"{split_name}/{row:06d}" for row in range(count)]
    if "file_name" in split.column_names:
        values["file_name"] = split["file_name"][:]
        if not all(isinstance(name, str) and name for name in values["file_name"]):
            raise UserError(
                f"data set {where}: column file_name: not all rows have a text: fill it or leave the column out"
            )
    values["person_name"] = names["person_id"]
    if "camera_id" in id_columns:
        values["camera_name"] = names.get("camera_id", [None] * count)
    converted = split.select_columns(["image"])
    for column, feature in {**FEATURES, **OPTIONAL_FEATURES}.items():
        if column != "image" and column in values:
            converted = converted.add_column(column, values[column], feature=feature)
    return converted


def _with_images(split: Dataset, name: str, where: str) -> Dataset:
    """Casts the image column to images whose bytes are in the table or in a file on this machine."""
    kind = split.features["image"]
    if not isinstance(kind, Image):
        try:
            split = split.cast_column("image", Image())
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"data set {where}: the image column is {kind!s:.100}: give images") from error
    if os.path.isdir(name):
        split = with_absolute_paths(split, Path(name), f"data set {where}")
    else:
        refuse_outside_paths(split, f"data set {where}")
    refuse_rows_without_image(split, f"data set {where}")
    return split


def _texts(split: Dataset, column: str, where: str) -> list[list[str]]:
    """Returns the texts of each row, without empty ones."""
    if column not in split.column_names:
        return [[]] * len(split)
    feature = split.features[column]
    inner = feature.feature if isinstance(feature, List) else feature
    if not (isinstance(inner, Value) and inner.dtype in ("string", "large_string", "null")):
        raise UserError(
            f"data set {where}: column {column} is {feature!s:.100}: give one text or a list of texts per row"
        )
    texts = [[cell] if isinstance(cell, str) else cell or [] for cell in split[column][:]]
    return [[text for text in row_texts if text and text.strip()] for row_texts in texts]
