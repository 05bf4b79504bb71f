"""The data contract: the columns that every reader yields, and the steps that all readers share."""

import logging
import math
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute
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
# Columns that a data set may have besides: numbers of tracks and clothes, and the names that the numbers stand for.
FURTHER = {
    "track_id": Value("int64"),
    "clothes_id": Value("int64"),
    "person_name": Value("string"),
    "camera_name": Value("string"),
}
SPLITS = ("train", "val", "query", "gallery")
UNKNOWN_CAMERA = -1
# "-1.0": as pandas writes it into a CSV whose column has gaps.
UNKNOWN_TEXTS = ("-1", "-1.0")
DECIMAL = re.compile("0|[1-9][0-9]{0,18}")
NUMBER = re.compile("-?[0-9]+")
LONGEST_SHOWN = 60
MAX_INT64 = 2**63 - 1
# Above, floats are not all the whole numbers.
EXACT_FLOATS = 2**53


class Row(NamedTuple):
    """One image as a reader finds it. file_name: relative to the data folder, with forward slashes."""

    file_name: str
    person_id: int
    camera_id: int = UNKNOWN_CAMERA
    captions: tuple[str, ...] = ()


def make_split(rows: Iterable[Row], *, root: str | os.PathLike[str], source: str) -> Dataset:
    """A split of the data contract. Images are referred to by absolute path, never copied; no continuations yet.

    source: the set's name; rendered people keep theirs, whatever reader's layout they lie in.
    Raises UserError for a path that is not UTF-8, which a table cannot hold.
    """
    rows = list(rows)
    root = os.path.abspath(root)
    # `Dataset.from_dict` takes every cell through Python several times: twenty times as long.
    try:
        paths = pa.array([f"{root}/{row.file_name}" for row in rows], pa.string())
    except UnicodeEncodeError as error:
        raise UserError(f"the path {error.object!r} is not UTF-8: rename its files and folders") from error
    columns = {
        "image": pa.StructArray.from_arrays([pa.nulls(len(rows), pa.binary()), paths], names=["bytes", "path"]),
        "person_id": [row.person_id for row in rows],
        "camera_id": [row.camera_id for row in rows],
        "caption": [row.captions for row in rows],
        "continuation": [()] * len(rows),
        "source": [rendered_source(root) or source] * len(rows),
        "file_name": [row.file_name for row in rows],
    }
    table = pa.Table.from_pydict(columns, schema=FEATURES.arrow_schema)
    return Dataset(table, info=DatasetInfo(features=FEATURES))


def id_text(value: Any) -> str | None:
    """The name of a person, camera, track or clothes that a cell of a table gives; None for an empty cell.

    Texts are taken as they are: "1", "01" and "1E2" are three names. A column of whole numbers with gaps comes as
    floats. Raises UserError for a value that is neither text nor a whole number, and for a float that may have lost
    digits.
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
    """`id_text` of a camera, track or clothes: -1 says that it is unknown, as a number and as text."""
    text = id_text(value)
    return None if text is None or text.strip() in UNKNOWN_TEXTS else text


def refuse_rounded(values: pa.Array | pa.ChunkedArray, where: str) -> None:
    """Raises UserError for ids in floats of 16 or 32 bits that are so large that two ids may have become one."""
    most = {pa.float16(): 2**11, pa.float32(): 2**24}.get(values.type)
    if most is not None and any(abs(value) >= most for value in values.to_pylist() if value is not None):
        raise UserError(
            f"{where} is {values.type}, which holds no whole number from {most:,} exactly: save it as text or as whole "
            "numbers"
        )


def number_names(names: Iterable[str | None]) -> dict[str, int]:
    """Name -> number. None is no name.

    Where every name is the plain decimal spelling of a whole number from 0 that fits into int64, the numbers are these;
    otherwise all names are numbered by their place in sorted order.
    Raises UserError for two names that look the same: they differ by white space around them, by invisible characters
    or by the spelling of one letter in Unicode alone.
    """
    distinct = sorted({name for name in names if name is not None})
    seen: dict[str, str] = {}
    for name in distinct:
        other = seen.setdefault(_visible(name), name)
        if other != name:
            raise UserError(f"the names {other!a} and {name!a} look the same: give both rows one name, or rename one")
    if all(DECIMAL.fullmatch(name) for name in distinct):
        numbers = {name: int(name) for name in distinct}
        if all(number <= MAX_INT64 for number in numbers.values()):
            return numbers
    return {name: number for number, name in enumerate(distinct)}


def is_utf8(text: str) -> bool:
    """Whether the text can be written as UTF-8: a file name of other bytes cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _visible(name: str) -> str:
    """What is seen of a name."""
    shown = "".join(c for c in unicodedata.normalize("NFC", name) if unicodedata.category(c) not in ("Cf", "Cc"))
    return shown.strip()


def person_names(split: Dataset) -> list[str]:
    """What each row's person is called: its name, where the data has names, or its number."""
    return _named(split["person_id"][:], split["person_name"][:] if "person_name" in split.column_names else None)


def camera_names(split: Dataset) -> list[str]:
    """What each row's camera is called: its name, where the data has names, or its number; "" where it is unknown."""
    names = _named(split["camera_id"][:], split["camera_name"][:] if "camera_name" in split.column_names else None)
    return ["" if camera == UNKNOWN_CAMERA else name for camera, name in zip(split["camera_id"][:], names, strict=True)]


def names_by_camera(split: Dataset) -> dict[int, str]:
    """What each camera of the split is called, no two alike; "" for the unknown one.

    Cameras of two sets may have one name: then the number is added.
    """
    called = dict(zip(split["camera_id"][:], camera_names(split), strict=True))
    counts = Counter(called.values())
    return {camera: name if counts[name] == 1 else f"{name} ({camera})" for camera, name in called.items()}


def _named(numbers: Sequence[int], names: Sequence[str | None] | None) -> list[str]:
    return [name or str(number) for number, name in zip(numbers, names or [None] * len(numbers), strict=True)]


def display_name(name: str) -> str:
    """A name as a message or table shows it: on one line, and not without end."""
    return name if name.isprintable() and len(name) <= LONGEST_SHOWN else f"{name!r:.{LONGEST_SHOWN}}"


def display_label(kind: str, name: str) -> str:
    """A name as a picture shows it: "anna", and "person 5" where it is a number alone."""
    return f"{kind} {name}" if NUMBER.fullmatch(name) else display_name(name)


def join_names(names: Iterable[str], most: int = 2) -> str:
    """Names in one line: "anna, ben and 3 more"."""
    distinct = sorted(set(names))
    more = f" and {len(distinct) - most:,} more" if len(distinct) > most else ""
    return ", ".join(map(display_name, distinct[:most])) + more


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
        further = {column: kind for column, kind in FURTHER.items() if column in split.features}
        for column, feature in {**FEATURES, **further}.items():
            if split.features[column] != feature:
                split = _cast(split, column, feature, f"{name}: column {column!r} of split {split_name!r}")
        for column in ("person_id", "camera_id", "file_name", "source", *(c for c in further if c.endswith("_id"))):
            gaps = split.data.column(column).null_count
            if gaps:
                raise UserError(f"{name}: column {column!r} of split {split_name!r} has {gaps:,} empty rows: fill them")
        refuse_rows_without_image(split, f"{name}: split {split_name!r}")
        for column in ("person", "camera"):
            if f"{column}_name" in further:
                _refuse_two_names(split, column, f"{name}: split {split_name!r}")
        checked[split_name] = split
    return checked


def refuse_rows_without_image(split: Dataset, where: str) -> None:
    """Raises UserError naming the first row that has neither an image's bytes nor its path."""
    images = split.with_format("arrow")[:]["image"]
    there = [pa.compute.is_valid(pa.compute.struct_field(images, field)) for field in ("bytes", "path")]
    row = pa.compute.index(pa.compute.or_(*there), False).as_py()
    if row >= 0:
        raise UserError(f"{where}, row {row + 1}: has no image: give one or remove the row")


def _refuse_two_names(split: Dataset, column: str, where: str) -> None:
    """Raises UserError where one number stands for two names."""
    name_of: dict[int, str | None] = {}
    for number, name in zip(split[f"{column}_id"][:], split[f"{column}_name"][:], strict=True):
        if name_of.setdefault(number, name) != name:
            raise UserError(f"{where}: {column}_id {number} has the names {name_of[number]!r:.60} and {name!r:.60}")


def _arrow_type(feature: Any) -> pa.DataType:
    """The Arrow type of a column of this kind."""
    return Features({"column": feature}).arrow_schema.field("column").type


def _cast(split: Dataset, column: str, feature: Any, where: str) -> Dataset:
    """The split with the column of this type. Raises UserError where values would change."""
    kind = split.features[column]
    # Texts such as "1" and "01", and flags, would become numbers.
    if feature == Value("int64") and not re.fullmatch("u?int(8|16|32|64)", str(getattr(kind, "dtype", ""))):
        raise UserError(f"{where} is {kind}: save it as {feature}, or name it in `columns`, which numbers names")
    try:
        if isinstance(feature, Image):
            return split.cast_column(column, feature)
        # The library's cast of any other column writes the whole split into a cache, or next to a saved one.
        values = split.select_columns(column).with_format("arrow")[:][column].cast(_arrow_type(feature)).to_pylist()
        return (
            split.remove_columns(column).add_column(column, values, feature=feature).select_columns(split.column_names)
        )
    except (TypeError, ValueError, NotImplementedError) as error:  # Arrow's own errors derive from these
        raise UserError(f"{where} is {kind}: save it as {feature}") from error


Counts = Mapping[str, Mapping[str, int]]  # part or folder -> numbers of "rows", "identities" and "captions"


class CountMismatch(UserError):
    """A data set is not the published one by its counts."""


def check_counts(found: Counts, published: Counts, *, name: str, where: object, strict: bool) -> None:
    """Compares the numbers of each part that is there with the published ones.

    A mismatch is a CountMismatch where `strict`, otherwise one warning.
    """
    wrong = [
        f"{part} has {found[part][kind]:,} {kind}, not {number:,}"
        for part, numbers in published.items()
        if part in found
        for kind, number in numbers.items()
        if found[part][kind] != number
    ]
    if wrong:
        text = f"{where}: not the published {name}: {'; '.join(wrong)}: check that the copy is complete and unchanged"
        if strict:
            raise CountMismatch(f"{text}, or leave `strict` out")
        logger.warning("%s. Results on it compare with no published table.", text)


def count_splits(dataset: DatasetDict) -> Counts:
    """The numbers of every part."""
    return {split: count(part) for split, part in dataset.items()}


def count(part: Dataset) -> dict[str, int]:
    """The numbers of "rows", "identities" and "captions" of a part."""
    table = part.select_columns(["person_id", "caption"]).with_format("arrow")[:]
    return {
        "rows": len(part),
        "identities": pc.count_distinct(table["person_id"]).as_py(),
        "captions": pc.sum(pc.list_value_length(table["caption"])).as_py() or 0,
    }


def count_rows(rows: Iterable[Row]) -> dict[str, int]:
    """The numbers of "rows" and "identities" of images as a reader finds them."""
    persons = [row.person_id for row in rows]
    return {"rows": len(persons), "identities": len(set(persons))}


ON_ERROR = ("stop", "skip")


class Problems:
    """The rows that could not be used, in the order they were met.

    on_error: "stop" raises the first problem; "skip" keeps its message in `messages`, and the row is left out.
    notes: what the user should know of the data that was read, a line each: where its splits come from, what no split
    has.
    Raises UserError for another policy.
    """

    def __init__(self, on_error: str = "stop"):
        if on_error not in ON_ERROR:
            raise UserError(f"on_error: unknown {on_error!r}: use one of {', '.join(ON_ERROR)}")
        self.on_error = on_error
        self.messages: list[str] = []
        self.notes: list[str] = []

    def report(self, problem: UserError) -> None:
        """Takes a row's problem: raised at once, or remembered."""
        if self.on_error == "stop":
            raise problem
        self.messages.append(str(problem))

    def warn(self, note: str) -> None:
        """Logs a note as a warning and keeps it."""
        logger.warning("%s", note)
        self.notes.append(note)
