"""Data sets on disk, read without the cache of `datasets`.

The cache identifies a folder by its last name, and keeps the old content after the folder has changed.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from datasets import Dataset, DatasetBuilder, DatasetDict, Image
from datasets.config import HF_DATASETS_CACHE
from datasets.fingerprint import generate_random_fingerprint
from huggingface_hub.constants import HF_HUB_CACHE

from ..utils.errors import UserError
from .contract import SPLITS
from .images import is_hidden, safe_join

SHARD = re.compile(r"(?P<split>\w+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.parquet")


def read_shards(folder: Path) -> DatasetDict:
    """Reads a folder of Parquet files such as `train-00000-of-00002.parquet` into memory.

    Args:
        folder (`Path`): the folder.

    Returns:
        `DatasetDict`: the splits.

    Raises:
        UserError: a file is missing, has another name or other columns, or cannot be read. The message names it.
    """
    names = sorted(path.name for path in folder.glob("*.parquet") if not is_hidden(path.name))
    foreign = [name for name in names if SHARD.fullmatch(name) is None]
    if foreign:
        raise UserError(f"{folder / foreign[0]}: is not a file like train-00000-of-00001.parquet: move it away")
    splits: dict[str, Dataset] = {}
    for split, shards in complete_splits(names, folder).items():
        tables = [_read_parquet(folder / name) for name in shards]
        for name, table in zip(shards, tables, strict=True):
            if not table.schema.equals(tables[0].schema):
                raise UserError(f"{folder / name}: has other columns than {shards[0]}: prepare the data again")
        try:
            # Without a given fingerprint, the library computes one from all bytes.
            splits[split] = Dataset(pa.concat_tables(tables), fingerprint=generate_random_fingerprint())
        except Exception as error:  # the metadata of the files may hold features of another writer
            raise UserError(
                f"{folder / shards[0]}: not readable ({error_summary(error)}): prepare the data again"
            ) from error
    return DatasetDict(splits)


def file_names(builder: DatasetBuilder) -> list[str]:
    """Returns the names of the files that a data set is built from, without their folders."""
    files = (file for split_files in (builder.config.data_files or {}).values() for file in split_files)
    return [str(file).rpartition("/")[2] for file in files]


def are_shards(folder: Path) -> bool:
    """Returns whether the folder has Parquet files, all with names that `read_shards` accepts."""
    if not os.path.isdir(folder):
        return False
    names = [path.name for path in folder.glob("*.parquet") if not is_hidden(path.name)]
    return bool(names) and all(SHARD.fullmatch(name) for name in names)


def complete_splits(names: Iterable[str], where: object) -> dict[str, list[str]]:
    """Groups the names of shards by split. Raises UserError if a shard is missing or belongs to another run."""
    shards: dict[str, dict[int, str]] = defaultdict(dict)
    counts: dict[str, int] = {}
    for name in sorted(names):
        match = SHARD.fullmatch(name)
        if match is None:
            continue
        split, number, count = match["split"], int(match["number"]), int(match["count"])
        if counts.setdefault(split, count) != count or number >= count:
            raise UserError(
                f"{where}: {name} and {min(shards[split].values(), default=name)} are of two runs: "
                "prepare the data again"
            )
        shards[split][number] = name
    for split, numbers in shards.items():
        missing = sorted(set(range(counts[split])) - set(numbers))
        if missing:
            name = f"{split}-{missing[0]:05d}-of-{counts[split]:05d}.parquet"
            raise UserError(f"{where}: {name} is missing: restore it or prepare the data again")
    # The splits of the data contract come first.
    ordered = sorted(shards, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
    return {split: [shards[split][number] for number in sorted(shards[split])] for split in ordered}


def _read_parquet(path: Path) -> pa.Table:
    """Reads one Parquet file. Raises UserError if it cannot be read."""
    try:
        # `read_table` would add columns for folders that are named key=value.
        with pa.parquet.ParquetFile(path) as file:
            # Reading all row groups at once would take twice the memory.
            groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
            return pa.concat_tables(groups) if groups else file.schema_arrow.empty_table()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: not readable ({error_summary(error)}): restore it or prepare the data again"
        ) from error


def refuse_archives(loaded: DatasetDict, cache: Path, name: str) -> None:
    """Raises UserError if images are in the temporary cache, because they were unpacked from archives."""
    for split in loaded.values():
        for column, feature in split.features.items():
            if isinstance(feature, Image):
                images = split.select_columns(column)
                images = images if column == "image" else images.rename_column(column, "image")
                if any(path is not None and Path(path).is_relative_to(cache) for path in image_paths(images)):
                    raise UserError(f"data set {name}: its images are in archives: unpack them")


def image_paths(split: Dataset) -> list[str | None]:
    """Returns the path of each image; None where its bytes are in the table."""
    images = split.with_format("arrow")[:]["image"]
    has_bytes = pc.is_valid(pc.struct_field(images, "bytes"))
    paths: list[str | None] = pc.if_else(
        has_bytes, pa.scalar(None, pa.string()), pc.struct_field(images, "path")
    ).to_pylist()
    return paths


def refuse_outside_paths(split: Dataset, where: str) -> None:
    """Raises UserError if a data set of the Hub names images that are not files of its own."""
    roots = [Path(root).resolve() for root in (HF_DATASETS_CACHE, HF_HUB_CACHE)]
    paths = image_paths(split)
    refuse_addresses(paths, where)
    for path in paths:
        if path is not None and not any(Path(path).resolve().is_relative_to(root) for root in roots):
            raise UserError(f"{where}: names the image {path!r:.200}, which is not in it: give one with its images")


def refuse_addresses(paths: Iterable[str | None], where: str) -> None:
    """Raises UserError for an image that is not a file: one in an archive, or on another machine."""
    for path in paths:
        if path is not None and "://" in path:
            raise UserError(f"{where}: its images are not files ({path:.200}): unpack or download them")


def with_absolute_paths(split: Dataset, folder: Path, where: str) -> Dataset:
    """Makes relative paths of images absolute. Raises UserError if a path leaves the folder."""
    paths = image_paths(split)
    refuse_addresses(paths, where)
    relative = [row for row, path in enumerate(paths) if path is not None and not Path(path).is_absolute()]
    if not relative:
        return split
    images = split.cast_column("image", Image(decode=False))["image"][:]
    for row in relative:
        images[row] = {"bytes": None, "path": str(safe_join(folder.absolute(), paths[row] or ""))}
    return split.remove_columns("image").add_column("image", images, feature=Image())


def error_summary(error: BaseException) -> str:
    """Returns the message of another library's error and of its cause, in one line."""
    reasons = [error, *([error.__cause__] if error.__cause__ is not None else [])]
    return ": ".join(" ".join(str(reason).split())[:200] or type(reason).__name__ for reason in reasons)
