"""A data set as Parquet with its card, as the Hub holds it: written once, loaded by name like any other."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, load_dataset

from ..errors import UserError
from .columns import FEATURES, image_sources, with_contract_columns
from .images import EmbeddedImage
from .inspection import describe

ROWS_OF_A_SHARD = 20_000


def write_prepared(
    folder: str | os.PathLike[str], dataset: DatasetDict, *, name: str, embed: bool = True, facts: Mapping[str, Any]
) -> None:
    """Writes `data/SPLIT-00000-of-00001.parquet` and `README.md`, which `load_dataset(folder)` reads.

    embed: the images' bytes in the tables; otherwise their paths, which only this machine can read. facts: what the
    card says of where it comes from (source, options). The folder appears when it is whole.
    Raises UserError for a folder that is there already.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"output {folder}: exists already: remove it or give another")
    aside = folder.with_name(f".{folder.name}.part")
    try:
        (aside / "data").mkdir(parents=True, exist_ok=True)
        for split, part in dataset.items():
            table = with_bytes(part) if embed else part
            shards = max(-(-len(table) // ROWS_OF_A_SHARD), 1)
            for number in range(shards):
                path = aside / "data" / f"{split}-{number:05d}-of-{shards:05d}.parquet"
                table.shard(shards, number, contiguous=True).to_parquet(path)
        (aside / "README.md").write_text(card(name, dataset, embed=embed, facts=facts), encoding="utf-8")
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_prepared(name: str, *, revision: str | None = None) -> DatasetDict:
    """What `write_prepared` wrote, from its folder or from the Hub. Raises UserError where it cannot be loaded."""
    try:
        loaded = load_dataset(name, revision=revision)
    except Exception as error:  # the library raises whatever its builder, the network or the files raised
        raise UserError(f"data set {name}: cannot be loaded ({' '.join(str(error).split())[:200]})") from error
    return with_contract_columns(DatasetDict({str(split): part for split, part in loaded.items()}), name)


def with_bytes(part: Dataset) -> Dataset:
    """The split with every image's encoded bytes in its table, as they are on disk."""
    sources = image_sources(part)

    def batch(rows: dict[str, list], indices: list[int]) -> dict[str, list]:
        names = rows["file_name"]
        contents = [_bytes(sources[index]) for index in indices]
        return {"image": [{"bytes": c, "path": Path(n).name} for c, n in zip(contents, names, strict=True)]}

    features = Features({**part.features, "image": Image()})
    plain = part.cast_column("image", Image(decode=False))
    return plain.map(batch, batched=True, batch_size=256, with_indices=True, features=features, desc="reading images")


def _bytes(source: Any) -> bytes:
    try:
        return source.read() if isinstance(source, EmbeddedImage) else Path(source).read_bytes()
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}): restore the image or leave it out") from error


def card(name: str, dataset: DatasetDict, *, embed: bool, facts: Mapping[str, Any]) -> str:
    """The data set's card: parts, counts, columns, where it comes from, and what holds for pictures of people."""
    lines = ["| part | images | persons | cameras | captions |", "|---|---|---|---|---|"]
    for split, part in dataset.items():
        of_part = describe(part)
        cameras = len(of_part["cameras"]) or "unknown"
        lines.append(
            f"| {split} | {of_part['images']:,} | {of_part['persons']:,} | {cameras} | {of_part['captions']:,} |"
        )
    splits = "\n".join(f"  - split: {split}\n    path: data/{split}-*.parquet" for split in dataset)
    origin = "\n".join(f"- {key}: {value}" for key, value in facts.items() if value not in (None, "", False))
    return CARD.format(
        title=re.sub(r"[^\w .-]", " ", name),
        splits=splits,
        table="\n".join(lines),
        columns=", ".join(f"`{column}`" for column in FEATURES),
        images="The images are in the tables." if embed else "The images are referred to by path, on one machine.",
        origin=origin,
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
