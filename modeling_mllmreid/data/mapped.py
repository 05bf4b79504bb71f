"""Any data set of the `datasets` library, from the Hub or from disk, by naming which of its columns is which."""

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
    file_names,
    one_line,
    read_shards,
    refuse_archives,
    refuse_outside_paths,
    whole_splits,
    with_absolute_paths,
)
from .splits import split_query_gallery

REQUIRED = ("image", "person_id")
IDS = {"person_id": id_text, "camera_id": known_id_text, "track_id": known_id_text, "clothes_id": known_id_text}
WANTED = (*FEATURES, "track_id", "clothes_id")
# What others call the parts.
NAMES = {"validation": "val", "dev": "val"}

Names = Mapping[str, list[str | None]]  # column of ids -> the name in each row


def read_mapped(name: str, columns: Mapping[str, str], *, revision: str | None = None) -> DatasetDict:
    """The data set with the columns of the data contract.

    name: what `datasets.load_dataset` takes; a folder is read as it is now, past the library's cache. columns: contract
    column -> the data set's column; image and person_id are needed, columns of the contract's own name need no entry.
    Ids may be numbers, texts or class labels and are numbered over all parts, see `columns.number_names`; the columns
    `person_name` and `camera_name` keep them. Without cameras all are unknown (-1). A part `test` gives `query` and
    `gallery`, one image per person and camera asking.
    Raises UserError for a data set that cannot be loaded, a column that is missing or of another kind.
    """
    unknown = sorted(set(columns) - set(WANTED))
    if unknown:
        raise UserError(f"columns: {unknown[0]!r} is no column of ours: use {', '.join(WANTED)}")
    for column, theirs in columns.items():
        if not isinstance(theirs, str):
            raise UserError(f"columns: {column} is {theirs!r:.60}: give the name of a column")
    twice = [theirs for theirs, count in Counter(columns.values()).items() if count > 1]
    if twice:
        raise UserError(f"columns: {twice[0]!r} is named for two columns: name it once")
    loaded = _load(name, columns, revision)
    parts: dict[str, Dataset] = {}
    for split, part in loaded.items():
        ours = NAMES.get(str(split), str(split))
        if ours in parts:
            raise UserError(f"data set {name}: two parts are called {ours} ({', '.join(map(str, loaded))}): rename one")
        where = f"{name}, part {split}"
        parts[ours] = _with_images(_renamed(part, columns, where), name, where)
    names = {split: _names(part, f"data set {name}, part {split}") for split, part in parts.items()}
    numbers = {}
    for column in IDS:
        everywhere = [text for of_part in names.values() for text in of_part.get(column, [])]
        try:
            numbers[column] = number_names(everywhere)
        except UserError as error:
            raise UserError(f"data set {name}: column {column}: {error}") from None
    further = [column for column in IDS if any(column in of_part for of_part in names.values())]
    made = {
        split: _with_contract(part, f"{name}, part {split}", split, _source(name), names[split], numbers, further)
        for split, part in parts.items()
    }
    if "test" in made:
        if {"query", "gallery"} & set(made):
            raise UserError(f"data set {name}: has {', '.join(made)}: test stands for query and gallery: rename one")
        made["query"], made["gallery"] = split_query_gallery(made.pop("test"))
    foreign = sorted(set(made) - set(SPLITS))
    if foreign:
        raise UserError(f"data set {name}: part {foreign[0]!r} is unknown: name the parts among {', '.join(SPLITS)}")
    return DatasetDict(made)


def _source(name: str) -> str:
    """What the rows say they are from: of a folder the last name."""
    return Path(name).resolve().name if os.path.exists(name) else name


def _load(name: str, columns: Mapping[str, str], revision: str | None) -> DatasetDict:
    """The data set as it is published. Ids in CSV files come as text."""
    path = Path(name)
    if os.path.isfile(path):
        raise UserError(f"data set {name}: is a file: give the folder that holds it")
    if are_shards(path / "data"):
        return read_shards(path / "data")
    here = os.path.isdir(path)
    place: dict[str, Any] = {"path": str(path.absolute())} if here else {"path": name, "revision": revision}
    try:
        with TemporaryDirectory(prefix="mllmreid-") if here else nullcontext() as cache:
            # The library's own cache goes by a folder's last name, and outlives the folder.
            place |= {"cache_dir": cache} if here else {}
            builder = load_dataset_builder(**place)
            whole_splits(file_names(builder), f"data set {name}")
            if isinstance(builder, Csv):
                # The library would make numbers of "01" and of ids of 20 digits, and nothing of "NA".
                place |= {"keep_default_na": False, "na_values": [""]}
                place["converters"] = dict.fromkeys((columns.get(column, column) for column in IDS), str)
            loaded = load_dataset(**place, keep_in_memory=here)
            if cache is not None:
                refuse_archives(loaded, Path(cache), name)
    except UserError:
        raise
    except Exception as error:  # the library raises whatever its builder, the network or the files raised
        raise UserError(f"data set {name}: cannot be loaded ({one_line(error)})") from error
    if not isinstance(loaded, DatasetDict):
        raise UserError(f"data set {name}: has no splits: give one that is loaded whole")
    if isinstance(builder, FolderBasedBuilder):
        _refuse_guessed_numbers(name, builder, loaded, columns)
    return loaded


def _refuse_guessed_numbers(
    name: str, builder: FolderBasedBuilder, loaded: DatasetDict, columns: Mapping[str, str]
) -> None:
    """Raises UserError where ids of a metadata.csv came as numbers: "01" and "1" would be one person."""
    if "metadata.csv" not in file_names(builder):
        return
    for part in loaded.values():
        for column in IDS:
            feature = part.features.get(columns.get(column, column))
            if isinstance(feature, Value) and feature.dtype != "string":
                raise UserError(
                    f"data set {name}: ids of a metadata.csv lose leading zeros here: read the folder by the reader "
                    "table, or save the metadata as metadata.jsonl"
                )


def _renamed(part: Dataset, columns: Mapping[str, str], where: str) -> Dataset:
    """The part with the columns that are ours, under our names."""
    taken = set(columns.values())
    wanted = {column: columns.get(column, column) for column in WANTED}
    known: dict[str, str] = {}
    for column, theirs in wanted.items():
        if theirs not in part.column_names and (column in columns or column in REQUIRED):
            raise UserError(
                f"data set {where}: no column {theirs!r} for {column}, but {', '.join(part.column_names)}: name it in "
                f'columns, such as {{"{column}": "{part.column_names[0] if part.column_names else "x"}"}}'
            )
        # A column of our name that stands for another one is not also itself.
        if theirs in part.column_names and (column in columns or theirs not in taken):
            known[theirs] = column
    return part.select_columns(list(known)).rename_columns({old: new for old, new in known.items() if old != new})


def _names(part: Dataset, where: str) -> Names:
    """The names in the part's columns of ids."""
    names: dict[str, list[str | None]] = {}
    for column, name_of in IDS.items():
        if column not in part.column_names:
            continue
        feature = part.features[column]
        if not isinstance(feature, Value | ClassLabel):
            raise UserError(f"{where}: column {column} is {feature!s:.100}: give one text or number a row")
        refuse_rounded(part.with_format("arrow")[:][column], f"{where}: column {column}")
        labels = feature.names if isinstance(feature, ClassLabel) else None
        names[column] = []
        for row, value in enumerate(part[column][:]):
            if labels is not None:
                value = labels[value] if isinstance(value, int) and 0 <= value < len(labels) else None
            try:
                names[column].append(name_of(value))
            except UserError as error:
                raise UserError(f"{where}, row {row + 1}: {column} {error}") from None
            if column == "person_id" and names[column][-1] is None:
                raise UserError(f"{where}, row {row + 1}: has no person_id: give one or remove the row")
    return names


def _with_contract(
    part: Dataset,
    where: str,
    split: str,
    source: str,
    names: Names,
    numbers: Mapping[str, Mapping[str, int]],
    further: list[str],
) -> Dataset:
    """The part with all columns of the contract, of its types, and those further ones that any part has."""
    count = len(part)

    def numbered(column: str) -> list[int]:
        return [-1 if name is None else numbers[column][name] for name in names.get(column, [None] * count)]

    values: dict[str, list] = {column: numbered(column) for column in {"person_id", "camera_id", *further}}
    for column in ("caption", "continuation"):
        values[column] = _texts(part, column, where)
    values["source"] = [source] * count
    values["file_name"] = [f"{split}/{row:06d}" for row in range(count)]
    if "file_name" in part.column_names:
        values["file_name"] = part["file_name"][:]
        if not all(isinstance(name, str) and name for name in values["file_name"]):
            raise UserError(
                f"data set {where}: column file_name: not all rows have a text: fill it or name no file_name"
            )
    values["person_name"] = names["person_id"]
    if "camera_id" in further:
        values["camera_name"] = names.get("camera_id", [None] * count)
    made = part.select_columns(["image"])
    for column, feature in {**FEATURES, **OPTIONAL_FEATURES}.items():
        if column != "image" and column in values:
            made = made.add_column(column, values[column], feature=feature)
    return made


def _with_images(part: Dataset, name: str, where: str) -> Dataset:
    """The part with its image column as images that lie in the table or on this machine."""
    kind = part.features["image"]
    if not isinstance(kind, Image):
        try:
            part = part.cast_column("image", Image())
        except (TypeError, ValueError, NotImplementedError) as error:
            raise UserError(f"data set {where}: the image column is {kind!s:.100}: give images") from error
    if os.path.isdir(name):
        part = with_absolute_paths(part, Path(name), f"data set {where}")
    else:
        refuse_outside_paths(part, f"data set {where}")
    refuse_rows_without_image(part, f"data set {where}")
    return part


def _texts(part: Dataset, column: str, where: str) -> list[list[str]]:
    """The texts of each row, without empty ones."""
    if column not in part.column_names:
        return [[]] * len(part)
    feature = part.features[column]
    inner = feature.feature if isinstance(feature, List) else feature
    if not (isinstance(inner, Value) and inner.dtype in ("string", "large_string", "null")):
        raise UserError(
            f"data set {where}: column {column} is {feature!s:.100}: give one text or a list of texts a row"
        )
    listed = [[cell] if isinstance(cell, str) else cell or [] for cell in part[column][:]]
    return [[text for text in of_row if text and text.strip()] for of_row in listed]
