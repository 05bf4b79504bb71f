"""Prepared data sets: writes a data set as Parquet files with a card, in the format of the Hub, and reads it."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from datasets import Dataset, DatasetDict, Features, Image, load_dataset_builder

from ..utils.errors import UserError
from ..utils.markdown import escape
from ..utils.outputs import AnyPath, atomic_folder, check_output_folder
from .contract import image_sources, with_contract_columns
from .images import EmbeddedImage, ImageSource
from .inspection import describe
from .local_files import complete_splits, error_summary, file_names, read_shards, refuse_outside_paths

ROWS_PER_SHARD = 20_000
ROWS_PER_WRITE = 256


def write_prepared(
    folder: AnyPath,
    dataset: DatasetDict,
    *,
    name: str,
    embed: bool = True,
    metadata: Mapping[str, Any],
    inputs: Sequence[AnyPath] = (),
) -> None:
    """Writes a data set as `data/SPLIT-00000-of-00001.parquet` and `README.md`, which `load_dataset(folder)` reads.

    The folder appears when it is complete. If several processes write the same folder, the first one wins.

    Args:
        folder (`str` or `os.PathLike`): the new folder.
        dataset (`DatasetDict`): splits of the data contract.
        name (`str`): the title of the card.
        embed (`bool`, defaults to `True`): store the bytes of the images. Otherwise the tables store their paths, which
            are valid on this machine only.
        metadata (`Mapping[str, Any]`): the origin of the data for the card, such as the source and the options.
        inputs (`Sequence`): the files and folders that the data was read from.

    Raises:
        UserError: the folder exists or is inside an input, or an image is missing.
    """
    if embed:
        check_output_folder(folder, inputs=inputs, needs_bytes=_total_image_bytes(dataset))
    with atomic_folder(folder, inputs=inputs) as temporary:
        (temporary / "data").mkdir()
        has_images = embed
        for split_name, split in dataset.items():
            sources = image_sources(split)
            has_images |= any(isinstance(source, EmbeddedImage) for source in sources)
            shards = max(-(-len(split) // ROWS_PER_SHARD), 1)
            for number in range(shards):
                rows = range(number * ROWS_PER_SHARD, min((number + 1) * ROWS_PER_SHARD, len(split)))
                path = temporary / "data" / f"{split_name}-{number:05d}-of-{shards:05d}.parquet"
                _write_shard(path, split, rows, sources if embed else None)
                written = pa.parquet.read_metadata(path).num_rows
                if written != len(rows):
                    raise UserError(
                        f"output {path.name}: {written:,} of {len(rows):,} rows were written: check the disk"
                    )
        text = card(name, dataset, has_images=has_images, metadata=metadata)
        (temporary / "README.md").write_text(text, encoding="utf-8")


def read_prepared(name: AnyPath, *, revision: str | None = None) -> DatasetDict:
    """Reads a data set that `write_prepared` wrote.

    Args:
        name (`str` or `os.PathLike`): a folder, which is read without the cache of `datasets`, or a name on the Hub.
        revision (`str`, *optional*): the revision on the Hub.

    Returns:
        `DatasetDict`: the splits.

    Raises:
        UserError: the data set cannot be loaded, is not complete, or lacks a column of the data contract.
    """
    if os.path.isdir(name):
        return with_contract_columns(read_shards(Path(name) / "data"), str(name))
    try:
        builder = load_dataset_builder(str(name), revision=revision)
        complete_splits(file_names(builder), f"data set {name}")
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    except UserError:
        raise
    except Exception as error:  # errors of the builder, the network and the files have no common type
        raise UserError(f"data set {name}: cannot be loaded ({error_summary(error)})") from error
    dataset = with_contract_columns(DatasetDict({str(key): split for key, split in loaded.items()}), str(name))
    for split in dataset.values():
        refuse_outside_paths(split, f"data set {name}")
    return dataset


def _write_shard(path: Path, split: Dataset, rows: range, sources: Sequence[ImageSource] | None) -> None:
    """Writes these rows as one Parquet file. If sources are given, it includes the unchanged bytes of the images."""
    schema = Features({**split.features, "image": Image()}).arrow_schema
    tables = split.cast_column("image", Image()).with_format("arrow")
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for start in range(rows.start, rows.stop, ROWS_PER_WRITE):
            stop = min(start + ROWS_PER_WRITE, rows.stop)
            table = tables[start:stop].select(schema.names).cast(schema)
            if sources is not None:
                names = [Path(name).name for name in table["file_name"].to_pylist()]
                contents = [_read_bytes(source) for source in sources[start:stop]]
                images = [{"bytes": content, "path": name} for content, name in zip(contents, names, strict=True)]
                index = schema.get_field_index("image")
                table = table.set_column(index, schema.field(index), pa.array(images, type=schema.field(index).type))
            writer.write_table(table)


def _total_image_bytes(dataset: DatasetDict) -> int:
    """Returns the total size in bytes of the image files that exist."""
    paths = [source for split in dataset.values() for source in image_sources(split) if isinstance(source, str)]
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path))


def _read_bytes(source: ImageSource) -> bytes:
    """Returns the encoded bytes of an image. Raises UserError if it cannot be read."""
    try:
        return source.read() if isinstance(source, EmbeddedImage) else Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}): restore the image or leave it out") from error


def card(name: str, dataset: DatasetDict, *, has_images: bool, metadata: Mapping[str, Any]) -> str:
    """Returns the card of a prepared data set: splits, counts, columns, origin and responsible use."""
    lines = ["| split | images | persons | cameras | captions |", "|---|---|---|---|---|"]
    for split_name, split in dataset.items():
        counts = describe(split)
        cameras = len(counts["cameras"]) or "unknown"
        lines.append(
            f"| {split_name} | {counts['images']:,} | {counts['persons']:,} | {cameras} | {counts['captions']:,} |"
        )
    splits = "\n".join(f"  - split: {name}\n    path: data/{name}-*.parquet" for name in dataset)
    known_metadata = {key: value for key, value in metadata.items() if value not in (None, "", False)}
    columns = dict.fromkeys(column for split in dataset.values() for column in split.column_names)
    return CARD.format(
        title=re.sub(r"[^\w .-]", " ", name),
        splits=splits,
        table="\n".join(lines),
        columns=", ".join(f"`{column}`" for column in columns),
        images="The images are in the tables." if has_images else "The tables refer to images on one machine by path.",
        origin="\n".join(f"- {escape(key)}: {escape(value)}" for key, value in known_metadata.items()),
    )


CARD = """---
tags: [person-re-identification]
configs:
- config_name: default
  data_files:
{splits}
---
# {title}, prepared for person re-identification

{table}

Columns: {columns}. {images}

## Origin
{origin}

The licence and the terms are those of the original data. This copy grants no other rights. Publish it only if these
terms allow it.

## Responsible use
Images that identify people may be biometric data (GDPR Article 9, BIPA and other laws). Every copy needs a lawful
basis or consent, a stated purpose, a limit on retention, and deletion on request. Do not use it to identify or follow
people covertly, or for decisions about a person that no human reviews.
"""
