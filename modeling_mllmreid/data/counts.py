"""Whether a data set is the published one: its counts against the papers'."""

import logging
from collections.abc import Iterable, Mapping

import pyarrow.compute as pc
from datasets import Dataset, DatasetDict

from ..errors import UserError
from .columns import Row

logger = logging.getLogger(__name__)

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


def count_parts(dataset: DatasetDict) -> Counts:
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
