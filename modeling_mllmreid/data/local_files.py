"""Data sets on disk, read without the cache of `datasets`: it goes by a folder's last name and outlives the folder."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute
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
    """The splits of a folder of Parquet files, `SPLIT-00000-of-00002.parquet` and so on, held in memory once.

    Raises UserError, naming the file, where one is missing, belongs to no whole split, or cannot be read.
    """
    names = sorted(path.name for path in folder.glob("*.parquet") if not is_hidden(path.name))
    foreign = [name for name in names if SHARD.fullmatch(name) is None]
    if foreign:
        raise UserError(f"{folder / foreign[0]}: is no file like train-00000-of-00001.parquet: move it away")
    splits: dict[str, Dataset] = {}
    for split, of_split in whole_splits(names, folder).items():
        tables = [_read_parquet(folder / name) for name in of_split]
        for name, table in zip(of_split, tables, strict=True):
            if not table.schema.equals(tables[0].schema):
                raise UserError(f"{folder / name}: has other columns than {of_split[0]}: prepare the data anew")
        try:
            # Without a fingerprint the library makes one of all bytes.
            splits[split] = Dataset(pa.concat_tables(tables), fingerprint=generate_random_fingerprint())
        except Exception as error:  # features that another writer left in the files' metadata
            raise UserError(
                f"{folder / of_split[0]}: not readable ({one_line(error)}): prepare the data anew"
            ) from error
    return DatasetDict(splits)


def file_names(builder: DatasetBuilder) -> list[str]:
    """The last names of the files that a data set is built of."""
    files = (file for of_split in (builder.config.data_files or {}).values() for file in of_split)
    return [str(file).rpartition("/")[2] for file in files]


def are_shards(folder: Path) -> bool:
    """Whether the folder holds Parquet files that are named as `read_shards` reads them, and no others."""
    if not os.path.isdir(folder):
        return False
    names = [path.name for path in folder.glob("*.parquet") if not is_hidden(path.name)]
    return bool(names) and all(SHARD.fullmatch(name) for name in names)


def whole_splits(names: Iterable[str], where: object) -> dict[str, list[str]]:
    """Split -> its files, of those named as shards. Raises UserError where one is missing or of another run."""
    found: dict[str, dict[int, str]] = defaultdict(dict)
    counts: dict[str, int] = {}
    for name in sorted(names):
        match = SHARD.fullmatch(name)
        if match is None:
            continue
        split, number, count = match["split"], int(match["number"]), int(match["count"])
        if counts.setdefault(split, count) != count or number >= count:
            raise UserError(
                f"{where}: {name} and {min(found[split].values(), default=name)} are of two runs: prepare the data anew"
            )
        found[split][number] = name
    for split, numbers in found.items():
        missing = sorted(set(range(counts[split])) - set(numbers))
        if missing:
            name = f"{split}-{missing[0]:05d}-of-{counts[split]:05d}.parquet"
            raise UserError(f"{where}: {name} is missing: restore it or prepare the data anew")
    # In the order of our own splits, then of others'.
    ordered = sorted(found, key=lambda split: (SPLITS.index(split) if split in SPLITS else len(SPLITS), split))
    return {split: [found[split][number] for number in sorted(found[split])] for split in ordered}


def _read_parquet(path: Path) -> pa.Table:
    try:
        # Not read_table, which makes columns of folders named like key=value.
        with pa.parquet.ParquetFile(path) as file:
            # Group by group: read at once, the columns take twice their size while they grow.
            groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
            return pa.concat_tables(groups) if groups else file.schema_arrow.empty_table()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable ({one_line(error)}): restore it or prepare the data anew") from error


def refuse_archives(loaded: DatasetDict, cache: Path, name: str) -> None:
    """Raises UserError where images lie in the cache, which is removed next: they were unpacked from archives."""
    for part in loaded.values():
        for column, feature in part.features.items():
            if isinstance(feature, Image):
                images = part.select_columns(column)
                images = images if column == "image" else images.rename_column(column, "image")
                if any(path is not None and Path(path).is_relative_to(cache) for path in image_paths(images)):
                    raise UserError(f"data set {name}: its images lie in archives: unpack them")


def image_paths(part: Dataset) -> list[str | None]:
    """The path of each image, None where its bytes are in the table."""
    images = part.with_format("arrow")[:]["image"]
    inside = pa.compute.is_valid(pa.compute.struct_field(images, "bytes"))
    return pa.compute.if_else(inside, pa.scalar(None, pa.string()), pa.compute.struct_field(images, "path")).to_pylist()


def refuse_outside_paths(part: Dataset, where: str) -> None:
    """Raises UserError where a data set of the Hub names images that it has not brought itself."""
    roots = [Path(root).resolve() for root in (HF_DATASETS_CACHE, HF_HUB_CACHE)]
    paths = image_paths(part)
    refuse_addresses(paths, where)
    for path in paths:
        if path is not None and not any(Path(path).resolve().is_relative_to(root) for root in roots):
            raise UserError(f"{where}: names the image {path!r:.200}, which is not in it: give one with its images")


def refuse_addresses(paths: Iterable[str | None], where: str) -> None:
    """Raises UserError for an image that is no file: one in an archive, or on another machine."""
    for path in paths:
        if path is not None and "://" in path:
            raise UserError(f"{where}: its images are no files ({path:.200}): unpack or download them")


def with_absolute_paths(part: Dataset, folder: Path, where: str) -> Dataset:
    """The part with images that are named relative to the folder; none of these leads out of it."""
    paths = image_paths(part)
    refuse_addresses(paths, where)
    relative = [row for row, path in enumerate(paths) if path is not None and not Path(path).is_absolute()]
    if not relative:
        return part
    images = part.cast_column("image", Image(decode=False))["image"][:]
    for row in relative:
        images[row] = {"bytes": None, "path": str(safe_join(folder.absolute(), paths[row] or ""))}
    return part.remove_columns("image").add_column("image", images, feature=Image())


def one_line(error: BaseException) -> str:
    """What another library says, in one line, with the reason that it gives."""
    reasons = [error, *([error.__cause__] if error.__cause__ is not None else [])]
    return ": ".join(" ".join(str(reason).split())[:200] or type(reason).__name__ for reason in reasons)
