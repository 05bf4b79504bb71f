"""The data contract: the columns that every reader yields, and the few steps that all readers share."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict, Features, Image, List, Value

from ..errors import UserError
from .images import EmbeddedImage, ImageSource
from .synthetic.marker import rendered_source

FEATURES = Features(
    {
        "image": Image(),
        "person_id": Value("int64"),
        "camera_id": Value("int64"),
        "caption": List(Value("string")),
        "continuation": List(Value("string")),
        "source": Value("string"),
        "file_name": Value("string"),
    }
)
SPLITS = ("train", "val", "query", "gallery")
UNKNOWN_CAMERA = -1


class Row(NamedTuple):
    """One image as a reader finds it. file_name: relative to the data folder, with forward slashes."""

    file_name: str
    person_id: int
    camera_id: int = UNKNOWN_CAMERA
    captions: tuple[str, ...] = ()


def make_split(rows: Iterable[Row], *, root: str | os.PathLike[str], source: str) -> Dataset:
    """A split of the data contract. Images are referred to by absolute path, never copied; no continuations yet.

    source: the set's name; rendered people keep theirs, whatever reader's layout they lie in.
    """
    rows = list(rows)
    root = Path(os.path.abspath(root))
    columns = {
        "image": [str(root / row.file_name) for row in rows],
        "person_id": [row.person_id for row in rows],
        "camera_id": [row.camera_id for row in rows],
        "caption": [list(row.captions) for row in rows],
        "continuation": [[] for _ in rows],
        "source": [rendered_source(root) or source] * len(rows),
        "file_name": [row.file_name for row in rows],
    }
    return Dataset.from_dict(columns, features=FEATURES)


def number_names(names: Iterable[Any]) -> dict[Any, int]:
    """Name -> number: whole numbers, as numbers or digits, as they are, others by their place in sorted order.

    None and the empty text are no names.
    """
    distinct = {name for name in names if name not in (None, "")}
    if all(isinstance(name, int) or str(name).isdigit() for name in distinct):
        return {name: int(name) for name in distinct}
    return {name: number for number, name in enumerate(sorted(distinct, key=str))}


def image_sources(split: Dataset) -> list[ImageSource]:
    """What `open_image` takes, row by row: the image's path, or its place in the table where its bytes lie there."""
    rows = split.select_columns(["image", "file_name"]).cast_column("image", Image(decode=False))
    sources: list[ImageSource] = []
    for batch in rows.with_format("arrow").iter(batch_size=1000):
        table = batch.flatten()
        embedded = table["image.bytes"].is_valid().to_pylist()
        paths, names = table["image.path"].to_pylist(), table["file_name"].to_pylist()
        for inside, path, name in zip(embedded, paths, names, strict=True):
            sources.append(EmbeddedImage(rows, len(sources), name) if inside else path)
    return sources


def with_contract_columns(dataset: DatasetDict, name: str) -> DatasetDict:
    """The data set with the contract's column types. Raises UserError for an unknown split and a column that is missing
    or of another kind, naming both."""
    checked = DatasetDict()
    for split_name, split in dataset.items():
        if split_name not in SPLITS:
            raise UserError(f"{name}: split {split_name!r} is unknown: name the splits among {', '.join(SPLITS)}")
        missing = [column for column in FEATURES if column not in split.features]
        if missing:
            raise UserError(f"{name}: split {split_name!r} has no column {', '.join(missing)}: add it before saving")
        for column, feature in FEATURES.items():
            if split.features[column] != feature:
                try:
                    split = split.cast_column(column, feature)
                except (TypeError, ValueError, NotImplementedError) as error:  # Arrow's own errors derive from these
                    kind = split.features[column]
                    raise UserError(
                        f"{name}: column {column!r} of split {split_name!r} is {kind}: save it as {feature}"
                    ) from error
        checked[split_name] = split
    return checked
