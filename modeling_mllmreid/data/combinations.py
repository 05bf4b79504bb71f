"""Several data sets to train on as one, and the domain-generalisation protocols by name.

market1501+cuhk03           the training parts of both
market1501+cuhk03:all       all their parts, test people too
market1501>msmt17           trained on one, tested on another
market1501+cuhk03:all>msmt17  several before the sign too
P-1                         Market-1501, CUHK02, CUHK03, CUHK-SYSU, all parts; tested on VIPeR, PRID, GRID, iLIDS
P-2:msmt17, P-3:msmt17      the others of Market-1501, MSMT17, CUHK03 with CUHK-SYSU; training parts, or all parts
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from datasets import Dataset, DatasetDict, concatenate_datasets

from ..utils.errors import UserError
from .contract import FEATURES, FURTHER, UNKNOWN_CAMERA

NAMES = ("person_name", "camera_name")
LEAVE_ONE_OUT = ("market1501", "msmt17", "cuhk03")


@dataclass(frozen=True)
class Combination:
    """Which sets are trained on, whether with all their parts, and which sets are tested on."""

    sources: tuple[str, ...]
    all_parts: bool = False
    targets: tuple[str, ...] = ()


def parse_combination(name: str) -> Combination | None:
    """What a name says; None where it names a single data set. Raises UserError for a protocol's unknown target."""
    if name == "P-1":
        sources = ("market1501", "cuhk02", "cuhk03", "cuhk_sysu")
        return Combination(sources, all_parts=True, targets=("viper", "prid", "grid", "ilids"))
    protocol, _, target = name.partition(":")
    if protocol in ("P-2", "P-3"):
        if target not in LEAVE_ONE_OUT:
            nearest = difflib.get_close_matches(target, LEAVE_ONE_OUT, n=1, cutoff=0)[0]
            raise UserError(
                f"data set {name!r}: {protocol} tests on one of its own sets: did you mean {protocol}:{nearest}?"
            )
        others = tuple(source for source in LEAVE_ONE_OUT if source != target)
        return Combination((*others, "cuhk_sysu"), all_parts=protocol == "P-3", targets=(target,))
    if ">" in name:
        trained, _, target = name.partition(">")
        combination = parse_combination(trained) or Combination((trained,))
        return replace(combination, targets=(target,))
    if "+" in name:
        sets, _, parts = name.partition(":")
        if parts not in ("", "all"):
            raise UserError(f"data set {name!r}: parts {parts!r} are unknown: write {sets} or {sets}:all")
        return Combination(tuple(sets.split("+")), all_parts=parts == "all")
    return None


def combine(datasets: Mapping[str, DatasetDict], *, all_parts: bool = False) -> Dataset:
    """One training part of several sets, in their order.

    Persons and cameras are keyed by (set, part, number): the numbers of different sets, and of the training and test
    people of one set, are different people, though query and gallery are one part. The keys, sorted, are numbered anew;
    an unknown camera stays unknown. all_parts: query and gallery too, each image once.
    Raises UserError for a set without a training part.
    """
    rows: list[Dataset] = []
    persons: list[tuple[str, str, int]] = []
    cameras: list[tuple[str, int]] = []
    for name, dataset in datasets.items():
        if "train" not in dataset:
            raise UserError(f"data set {name}: has {', '.join(dataset)}: it has no training part to combine")
        for split in [split for split in dataset if split == "train" or all_parts]:
            part = dataset[split].select_columns([c for c in dataset[split].column_names if c in {*FEATURES, *NAMES}])
            if split == "query" and "gallery" in dataset:
                # A query that stands in the gallery too (caption queries) is trained on once.
                there = set(dataset["gallery"]["file_name"])
                part = part.select([row for row, file_name in enumerate(part["file_name"]) if file_name not in there])
            people = "test" if split in ("query", "gallery") else split
            rows.append(part)
            persons += [(name, people, person) for person in part["person_id"]]
            cameras += [(name, camera) for camera in part["camera_id"]]
    # Numbers of sets are made anew, names stay; rows of a set without names have none.
    named = [column for column in NAMES if any(column in part.column_names for part in rows)]
    rows = [_with_columns(part, named) for part in rows]
    whole = concatenate_datasets(rows)
    numbers = {key: number for number, key in enumerate(sorted(set(persons)))}
    known = sorted({key for key in cameras if key[1] != UNKNOWN_CAMERA})
    camera_numbers = {key: number for number, key in enumerate(known)}
    for column, values in (
        ("person_id", [numbers[key] for key in persons]),
        ("camera_id", [camera_numbers.get(key, UNKNOWN_CAMERA) for key in cameras]),
    ):
        whole = whole.remove_columns(column).add_column(column, values, feature=FEATURES[column])
    return whole.select_columns([*FEATURES, *named])


def _with_columns(part: Dataset, columns: Sequence[str]) -> Dataset:
    """The part with these columns of texts, empty where it has none."""
    for column in columns:
        if column not in part.column_names:
            part = part.add_column(column, [None] * len(part), feature=FURTHER[column])
    return part
