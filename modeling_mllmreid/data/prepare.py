"""A data set as Parquet with its card, as the Hub holds it: written once, loaded by name like any other."""

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
from .local_files import file_names, one_line, read_shards, refuse_outside_paths, whole_splits

ROWS_OF_A_SHARD = 20_000
ROWS_AT_ONCE = 256


def write_prepared(
    folder: AnyPath,
    dataset: DatasetDict,
    *,
    name: str,
    embed: bool = True,
    metadata: Mapping[str, Any],
    inputs: Sequence[AnyPath] = (),
) -> None:
    """Writes `data/SPLIT-00000-of-00001.parquet` and `README.md`, which `load_dataset(folder)` reads.

    embed: the images' bytes in the tables; otherwise their paths, which only this machine can read. facts: what the
    card says of where it comes from (source, options). inputs: what the data is read from. The folder appears when it
    is whole; each of several writers writes its own, and the first one's stays.
    Raises UserError for a folder that is there already, or that lies in an input, and for an image that is missing.
    """
    if embed:
        check_output_folder(folder, inputs=inputs, needs_bytes=_bytes_of_images(dataset))
    with atomic_folder(folder, inputs=inputs) as aside:
        (aside / "data").mkdir()
        in_tables = embed
        for split, part in dataset.items():
            sources = image_sources(part)
            in_tables |= any(isinstance(source, EmbeddedImage) for source in sources)
            shards = max(-(-len(part) // ROWS_OF_A_SHARD), 1)
            for number in range(shards):
                rows = range(number * ROWS_OF_A_SHARD, min((number + 1) * ROWS_OF_A_SHARD, len(part)))
                path = aside / "data" / f"{split}-{number:05d}-of-{shards:05d}.parquet"
                _write_shard(path, part, rows, sources if embed else None)
                found = pa.parquet.read_metadata(path).num_rows
                if found != len(rows):
                    raise UserError(f"output {path.name}: {found:,} rows were written of {len(rows):,}: check the disk")
        text = card(name, dataset, in_tables=in_tables, metadata=metadata)
        (aside / "README.md").write_text(text, encoding="utf-8")


def read_prepared(name: AnyPath, *, revision: str | None = None) -> DatasetDict:
    """What `write_prepared` wrote, from its folder or from the Hub.

    A folder is read as it is now, past the cache of `datasets`. Raises UserError where it cannot be loaded, or is not
    whole.
    """
    if os.path.isdir(name):
        return with_contract_columns(read_shards(Path(name) / "data"), str(name))
    try:
        builder = load_dataset_builder(str(name), revision=revision)
        whole_splits(file_names(builder), f"data set {name}")
        builder.download_and_prepare()
        loaded = builder.as_dataset()
    except UserError:
        raise
    except Exception as error:  # the library raises whatever its builder, the network or the files raised
        raise UserError(f"data set {name}: cannot be loaded ({one_line(error)})") from error
    dataset = with_contract_columns(DatasetDict({str(split): part for split, part in loaded.items()}), str(name))
    for part in dataset.values():
        refuse_outside_paths(part, f"data set {name}")
    return dataset


def _write_shard(path: Path, part: Dataset, rows: range, sources: Sequence[ImageSource] | None) -> None:
    """Writes these rows as one Parquet file, with the images' bytes as they are on disk where sources are given."""
    schema = Features({**part.features, "image": Image()}).arrow_schema
    tables = part.cast_column("image", Image()).with_format("arrow")
    with pa.parquet.ParquetWriter(path, schema) as writer:
        for start in range(rows.start, rows.stop, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, rows.stop)
            table = tables[start:stop].select(schema.names).cast(schema)
            if sources is not None:
                names = [Path(name).name for name in table["file_name"].to_pylist()]
                contents = [_bytes(source) for source in sources[start:stop]]
                images = [{"bytes": content, "path": name} for content, name in zip(contents, names, strict=True)]
                place = schema.get_field_index("image")
                table = table.set_column(place, schema.field(place), pa.array(images, type=schema.field(place).type))
            writer.write_table(table)


def _bytes_of_images(dataset: DatasetDict) -> int:
    """What the images that are files take, as far as they are there."""
    paths = [source for part in dataset.values() for source in image_sources(part) if isinstance(source, str)]
    return sum(os.path.getsize(path) for path in paths if os.path.isfile(path))


def _bytes(source: ImageSource) -> bytes:
    try:
        return source.read() if isinstance(source, EmbeddedImage) else Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}): restore the image or leave it out") from error


def card(name: str, dataset: DatasetDict, *, in_tables: bool, metadata: Mapping[str, Any]) -> str:
    """The data set's card: parts, counts, columns, where it comes from, and what holds for pictures of people."""
    lines = ["| part | images | persons | cameras | captions |", "|---|---|---|---|---|"]
    for split, part in dataset.items():
        of_part = describe(part)
        cameras = len(of_part["cameras"]) or "unknown"
        lines.append(
            f"| {split} | {of_part['images']:,} | {of_part['persons']:,} | {cameras} | {of_part['captions']:,} |"
        )
    splits = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in dataset)
    given = {key: value for key, value in metadata.items() if value not in (None, "", False)}
    columns = dict.fromkeys(column for part in dataset.values() for column in part.column_names)
    return CARD.format(
        title=re.sub(r"[^\w .-]", " ", name),
        splits=splits,
        table="\n".join(lines),
        columns=", ".join(f"`{column}`" for column in columns),
        images="The images are in the tables." if in_tables else "The images are referred to by path, on one machine.",
        origin="\n".join(f"- {escape(key)}: {escape(value)}" for key, value in given.items()),
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

## Where it comes from
{origin}

The licence and the terms are those of the original data; this copy grants no other rights. Do not publish it unless
these allow it.

## Responsible use
Pictures of people from which they can be told apart may be biometric data (GDPR Article 9, BIPA and other laws): a
lawful basis or consent, a stated purpose, a limit on retention, and deletion on request apply to every copy. Not for
identifying or following people covertly, and not for decisions about a person that no human reviews.
"""
