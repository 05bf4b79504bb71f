"""The data contract: the columns that every reader yields, and the functions that all readers share."""

import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image, List, Value

from ..synthetic.worlds import rendered_source
from ..utils.errors import UserError
from .images import EmbeddedImage, ImageSource

logger = logging.getLogger(__name__)


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
# Optional columns: numbers of tracks and clothes, the names that the numbers stand for, and the ids of continuations
# with the digest of the tokenizer that each belongs to.
OPTIONAL_FEATURES = {
    "track_id": Value("int64"),
    "clothes_id": Value("int64"),
    "person_name": Value("string"),
    "camera_name": Value("string"),
    "continuation_ids": List(List(Value("int64"))),
    "continuation_tokenizer": List(Value("string")),
}
SPLITS = ("train", "val", "query", "gallery")
UNKNOWN_CAMERA = -1
# pandas writes "-1.0" into a CSV file where a column has gaps.
UNKNOWN_TEXTS = ("-1", "-1.0")
DECIMAL = re.compile("0|[1-9][0-9]{0,18}")
NUMBER = re.compile("-?[0-9]+")
LONGEST_SHOWN = 60
MAX_INT64 = 2**63 - 1
# Above this limit, float64 cannot represent every whole number.
EXACT_FLOATS = 2**53


class Sample(NamedTuple):
    """One image that a reader yields. file_name: its path relative to the data folder, with forward slashes."""

    file_name: str
    person_id: int
    camera_id: int = UNKNOWN_CAMERA
    captions: tuple[str, ...] = ()


def make_split(samples: Iterable[Sample], *, root: str | os.PathLike[str], source: str) -> Dataset:
    """Builds a split of the data contract. It stores the absolute paths of the images and copies no image.

    Args:
        samples (`Iterable[Sample]`): the images of the split, in order.
        root (`str` or `os.PathLike`): the data folder that the file names are relative to.
        source (`str`): the name of the data set. Rendered people keep their own source in every layout.

    Returns:
        `Dataset`: the columns of `FEATURES`, one row per sample. The column `continuation` is empty.

    Raises:
        UserError: a path is not UTF-8, and a table cannot store it.
    """
    samples = list(samples)
    root = os.path.abspath(root)
    # `Dataset.from_dict` converts every cell several times and takes twenty times as long.
    try:
        paths = pa.array([f"{root}/{sample.file_name}" for sample in samples], pa.string())
    except UnicodeEncodeError as error:
        raise UserError(f"the path {error.object!r} is not UTF-8: rename its files and folders") from error
    columns = {
        "image": pa.StructArray.from_arrays([pa.nulls(len(samples), pa.binary()), paths], names=["bytes", "path"]),
        "person_id": [sample.person_id for sample in samples],
        "camera_id": [sample.camera_id for sample in samples],
        "caption": [sample.captions for sample in samples],
        "continuation": [()] * len(samples),
        "source": [rendered_source(root) or source] * len(samples),
        "file_name": [sample.file_name for sample in samples],
    }
    table = pa.Table.from_pydict(columns, schema=FEATURES.arrow_schema)
    return Dataset(table, info=DatasetInfo(features=FEATURES))


def id_text(value: Any) -> str | None:
    """Returns the name of a person, camera, track or clothes in a cell of a table; None for an empty cell.

    A text is not changed: "1", "01" and "1E2" are three names. A float is accepted where it is a whole number, because
    a column of whole numbers with gaps is read as floats.
    Raises UserError for a value that is neither text nor a whole number, and for a float that may have lost digits.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        if not is_utf8(value):
            raise UserError(f"{value!r} is not UTF-8 text: rename it")
        return value if value.strip() else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT_FLOATS:
        return str(int(value))
    raise UserError(f"{value!r:.60} is neither text nor a whole number: save it as one of them")


def known_id_text(value: Any) -> str | None:
    """Returns `id_text` of a camera, track or clothes; None for -1, which means unknown, as a number or as text."""
    text = id_text(value)
    return None if text is None or text.strip() in UNKNOWN_TEXTS else text


def refuse_rounded(values: pa.Array | pa.ChunkedArray, where: str) -> None:
    """Raises UserError where large ids are floats of 16 or 32 bits: rounding may have made two ids equal."""
    limit = {pa.float16(): 2**11, pa.float32(): 2**24}.get(values.type)
    if limit is not None and any(abs(value) >= limit for value in values.to_pylist() if value is not None):
        raise UserError(
            f"{where} is {values.type}, which rounds whole numbers from {limit:,}: save it as text or as whole numbers"
        )


def number_names(names: Iterable[str | None]) -> dict[str, int]:
    """Maps each name to a number. None is not a name.

    If every name is the decimal form of a whole number from 0 that fits into int64, its number is this one. Otherwise a
    name's number is its position in the sorted list of names.
    Raises UserError for two names that look the same: they differ only in white space around them, in invisible
    characters, or in the Unicode form of a letter.
    """
    distinct = sorted({name for name in names if name is not None})
    seen: dict[str, str] = {}
    for name in distinct:
        other = seen.setdefault(_visible(name), name)
        if other != name:
            raise UserError(f"the names {other!a} and {name!a} look the same: use one name for both, or rename one")
    if all(DECIMAL.fullmatch(name) for name in distinct):
        numbers = {name: int(name) for name in distinct}
        if all(number <= MAX_INT64 for number in numbers.values()):
            return numbers
    return {name: number for number, name in enumerate(distinct)}


def is_utf8(text: str) -> bool:
    """Returns whether the text can be encoded as UTF-8, which a file name of other bytes cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _visible(name: str) -> str:
    """Returns the visible characters of a name, in one Unicode form."""
    visible = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) not in ("Cf", "Cc"))
    return visible.strip()


def person_names(split: Dataset) -> list[str]:
    """Returns the person's name for each row of the split, or the person's number as text in data without names."""
    return _names_or_numbers(
        split["person_id"][:], split["person_name"][:] if "person_name" in split.column_names else None
    )


def camera_names(split: Dataset) -> list[str]:
    """Returns the camera's name for each row of the split, or its number as text in data without names.

    An unknown camera is "".
    """
    given_names = split["camera_name"][:] if "camera_name" in split.column_names else None
    names = _names_or_numbers(split["camera_id"][:], given_names)
    return ["" if camera == UNKNOWN_CAMERA else name for camera, name in zip(split["camera_id"][:], names, strict=True)]


def names_by_camera(split: Dataset) -> dict[int, str]:
    """Maps each camera id of the split to a unique name; the unknown camera (-1) to "".

    Cameras of two data sets may have the same name. Then the name includes the number.
    """
    names = dict(zip(split["camera_id"][:], camera_names(split), strict=True))
    counts = Counter(names.values())
    return {camera: name if counts[name] == 1 else f"{name} ({camera})" for camera, name in names.items()}


def _names_or_numbers(numbers: Sequence[int], names: Sequence[str | None] | None) -> list[str]:
    """Returns each name, or the number as text where there is no name."""
    return [name or str(number) for number, name in zip(numbers, names or [None] * len(numbers), strict=True)]


def display_name(name: str) -> str:
    """Returns a name for a message or a table: one line, at most `LONGEST_SHOWN` characters."""
    return name if name.isprintable() and len(name) <= LONGEST_SHOWN else f"{name!r:.{LONGEST_SHOWN}}"


def display_label(kind: str, name: str) -> str:
    """Returns a label for a picture: "anna", or "person 5" for a name that is only a number."""
    return f"{kind} {name}" if NUMBER.fullmatch(name) else display_name(name)


def join_names(names: Iterable[str], limit: int = 2) -> str:
    """Returns the first distinct names in one line: "anna, ben and 3 more"."""
    distinct = sorted(set(names))
    more = f" and {len(distinct) - limit:,} more" if len(distinct) > limit else ""
    return ", ".join(map(display_name, distinct[:limit])) + more


def image_sources(split: Dataset) -> list[ImageSource]:
    """Returns the source of each image of a split, without decoding it.

    Args:
        split (`Dataset`): a split of the data contract.

    Returns:
        `list[ImageSource]`: one source per row, which `open_image` accepts: the path of a file, or an `EmbeddedImage`
        where the table stores the bytes.
    """
    encoded = split.select_columns(["image", "file_name"]).cast_column("image", Image(decode=False))
    sources: list[ImageSource] = []
    for batch in encoded.with_format("arrow").iter(batch_size=1000):
        table = batch.flatten()
        embedded = table["image.bytes"].is_valid().to_pylist()
        paths, names = table["image.path"].to_pylist(), table["file_name"].to_pylist()
        for has_bytes, path, name in zip(embedded, paths, names, strict=True):
            sources.append(EmbeddedImage(encoded, len(sources), name) if has_bytes else path)
    return sources


def with_contract_columns(dataset: DatasetDict, name: str) -> DatasetDict:
    """Casts the columns of a data set to the types of the data contract.

    Args:
        dataset (`DatasetDict`): splits with the columns of the contract.
        name (`str`): the data set's name, for messages.

    Returns:
        `DatasetDict`: the same splits with the types of `FEATURES`.

    Raises:
        UserError: a split is unknown; a column is missing, has another type or empty cells; an image is missing; or one
            number has two names.
    """
    checked = DatasetDict()
    for split_name, split in dataset.items():
        if split_name not in SPLITS:
            raise UserError(f"{name}: split {split_name!r} is unknown: name the splits among {', '.join(SPLITS)}")
        missing = [column for column in FEATURES if column not in split.features]
        if missing:
            raise UserError(f"{name}: split {split_name!r} has no column {', '.join(missing)}: add it before saving")
        optional = {column: kind for column, kind in OPTIONAL_FEATURES.items() if column in split.features}
        for column, feature in {**FEATURES, **optional}.items():
            if split.features[column] != feature:
                split = _cast(split, column, feature, f"{name}: column {column!r} of split {split_name!r}")
        for column in ("person_id", "camera_id", "file_name", "source", *(c for c in optional if c.endswith("_id"))):
            gaps = split.data.column(column).null_count
            if gaps:
                raise UserError(f"{name}: column {column!r} of split {split_name!r} has {gaps:,} empty rows: fill them")
        refuse_rows_without_image(split, f"{name}: split {split_name!r}")
        for column in ("person", "camera"):
            if f"{column}_name" in optional:
                _refuse_two_names(split, column, f"{name}: split {split_name!r}")
        checked[split_name] = split
    return checked


def refuse_rows_without_image(split: Dataset, where: str) -> None:
    """Raises UserError that names the first row with neither the bytes nor the path of an image."""
    images = split.with_format("arrow")[:]["image"]
    present = [pc.is_valid(pc.struct_field(images, field)) for field in ("bytes", "path")]
    row = pc.index(pc.or_(*present), False).as_py()
    if row >= 0:
        raise UserError(f"{where}, row {row + 1}: has no image: give one or remove the row")


def _refuse_two_names(split: Dataset, column: str, where: str) -> None:
    """Raises UserError where one number has two names."""
    name_of: dict[int, str | None] = {}
    for number, name in zip(split[f"{column}_id"][:], split[f"{column}_name"][:], strict=True):
        if name_of.setdefault(number, name) != name:
            raise UserError(f"{where}: {column}_id {number} has the names {name_of[number]!r:.60} and {name!r:.60}")


def _arrow_type(feature: Any) -> pa.DataType:
    """Returns the Arrow type of a feature of `datasets`."""
    return Features({"column": feature}).arrow_schema.field("column").type


def _cast(split: Dataset, column: str, feature: Any, where: str) -> Dataset:
    """Casts one column of the split. Raises UserError where the cast would change values."""
    kind = split.features[column]
    # A cast would turn the texts "1" and "01" into one number, and booleans into numbers.
    if feature == Value("int64") and not re.fullmatch("u?int(8|16|32|64)", str(getattr(kind, "dtype", ""))):
        raise UserError(f"{where} is {kind}: save it as {feature}, or name it in `columns`, which numbers the names")
    try:
        if isinstance(feature, Image):
            return split.cast_column(column, feature)
        # `cast_column` writes the whole split into a cache, or next to a saved one, for any column except images.
        values = split.select_columns(column).with_format("arrow")[:][column].cast(_arrow_type(feature)).to_pylist()
        return (
            split.remove_columns(column).add_column(column, values, feature=feature).select_columns(split.column_names)
        )
    except (TypeError, ValueError, NotImplementedError) as error:  # Arrow's errors derive from these
        raise UserError(f"{where} is {kind}: save it as {feature}") from error


Counts = Mapping[str, Mapping[str, int]]  # split or folder -> counts of "samples", "identities" and "captions"


class CountMismatch(UserError):
    """The counts of a data set differ from the published ones."""


def check_counts(counts: Counts, published: Counts, *, name: str, where: object, strict: bool) -> None:
    """Compares the counts of each split that exists with the published ones.

    A mismatch raises CountMismatch if `strict`, and logs one warning otherwise.
    """
    differences = [
        f"{split} has {counts[split][kind]:,} {kind}, not {number:,}"
        for split, numbers in published.items()
        if split in counts
        for kind, number in numbers.items()
        if counts[split][kind] != number
    ]
    if differences:
        text = (
            f"{where}: not the published {name}: {'; '.join(differences)}: check that the copy is complete and intact"
        )
        if strict:
            raise CountMismatch(f"{text}, or leave `strict` out")
        logger.warning("%s. Its results cannot be compared with published tables.", text)


def count_splits(dataset: DatasetDict) -> Counts:
    """Returns the counts of every split."""
    return {name: count_split(split) for name, split in dataset.items()}


def count_split(split: Dataset) -> dict[str, int]:
    """Returns the numbers of "samples" (rows), "identities" and "captions" of a split."""
    table = split.select_columns(["person_id", "caption"]).with_format("arrow")[:]
    return {
        "samples": len(split),
        "identities": pc.count_distinct(table["person_id"]).as_py(),
        "captions": pc.sum(pc.list_value_length(table["caption"])).as_py() or 0,
    }


def count_samples(samples: Iterable[Sample]) -> dict[str, int]:
    """Returns the numbers of "samples" and "identities" before a split is built."""
    persons = [sample.person_id for sample in samples]
    return {"samples": len(persons), "identities": len(set(persons))}


ON_ERROR = ("stop", "skip")


class Problems:
    """Collects the samples that cannot be used and the notes about the data that is read.

    Attributes:
        messages (`list[str]`): the problems that were skipped, in order.
        notes (`list[str]`): one line per note for the user: the origin of the splits, the samples that no split has.

    Args:
        on_error (`str`, defaults to `"stop"`): "stop" raises the first problem; "skip" keeps its message, and
            the reader leaves the sample out.
        log (`bool`, defaults to `True`): whether warnings are logged, as nobody prints the notes.

    Raises:
        UserError: `on_error` has another value.
    """

    def __init__(self, on_error: str = "stop", *, log: bool = True):
        if on_error not in ON_ERROR:
            raise UserError(f"on_error: unknown {on_error!r}: use one of {', '.join(ON_ERROR)}")
        self.on_error, self.log = on_error, log
        self.messages: list[str] = []
        self.notes: list[str] = []

    def report(self, problem: UserError) -> None:
        """Raises the problem of a sample, or keeps its message."""
        if self.on_error == "stop":
            raise problem
        self.messages.append(str(problem))

    def warn(self, note: str) -> None:
        """Keeps a note, and logs it as a warning."""
        if self.log:
            logger.warning("%s", note)
        self.notes.append(note)
