"""Combinations of data sets, and the domain-generalisation protocols, by name.

market1501+cuhk03             trains on the training splits of both
market1501+cuhk03:all         trains on all splits of both, test people included
market1501>msmt17             trains on the first, tests on the second
market1501+cuhk03:all>msmt17  trains on several, tests on another
P-1                           trains on all splits of Market-1501, CUHK02, CUHK03 and CUHK-SYSU,
                              tests on VIPeR, PRID, GRID and iLIDS
P-2:msmt17                    trains on CUHK-SYSU and two of Market-1501, MSMT17 and CUHK03, tests on the third
P-3:msmt17                    as P-2, but trains on all splits
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from datasets import Dataset, DatasetDict, concatenate_datasets

from ..utils.errors import UserError
from .contract import FEATURES, OPTIONAL_FEATURES, UNKNOWN_CAMERA

NAME_COLUMNS = ("person_name", "camera_name")
LEAVE_ONE_OUT = ("market1501", "msmt17", "cuhk03")


@dataclass(frozen=True)
class Combination:
    """The data sets to train on, whether all their splits are used, and the data sets to test on."""

    sources: tuple[str, ...]
    all_splits: bool = False
    targets: tuple[str, ...] = ()


def parse_combination(name: str) -> Combination | None:
    """Parses the name of a combination or of a protocol.

    Args:
        name (`str`): a name as in the module's table.

    Returns:
        `Combination` or `None`: None for the name of a single data set.

    Raises:
        UserError: the target of a protocol, or the suffix of a combination, is unknown.
    """
    if name == "P-1":
        sources = ("market1501", "cuhk02", "cuhk03", "cuhk_sysu")
        return Combination(sources, all_splits=True, targets=("viper", "prid", "grid", "ilids"))
    protocol, _, target = name.partition(":")
    if protocol in ("P-2", "P-3"):
        if target not in LEAVE_ONE_OUT:
            nearest = difflib.get_close_matches(target, LEAVE_ONE_OUT, n=1, cutoff=0)[0]
            raise UserError(
                f"data set {name!r}: {protocol} tests on one of its own sets: did you mean {protocol}:{nearest}?"
            )
        others = tuple(source for source in LEAVE_ONE_OUT if source != target)
        return Combination((*others, "cuhk_sysu"), all_splits=protocol == "P-3", targets=(target,))
    if ">" in name:
        train_name, _, target = name.partition(">")
        combination = parse_combination(train_name) or Combination((train_name,))
        return replace(combination, targets=(target,))
    if "+" in name:
        joined, _, suffix = name.partition(":")
        if suffix not in ("", "all"):
            raise UserError(f"data set {name!r}: suffix {suffix!r} is unknown: write {joined} or {joined}:all")
        return Combination(tuple(joined.split("+")), all_splits=suffix == "all")
    return None


def combine(datasets: Mapping[str, DatasetDict], *, all_splits: bool = False) -> Dataset:
    """Combines data sets into one training split, in their order.

    Equal person ids of two data sets, or of the training and the test people of one data set, are different people.
    Query and gallery have the same people. The persons and cameras get new numbers; an unknown camera stays -1.

    Args:
        datasets (`Mapping[str, DatasetDict]`): name -> splits of the data contract.
        all_splits (`bool`, defaults to `False`): use all splits, each image once, and not only `train`.

    Returns:
        `Dataset`: the columns of the data contract, and `person_name` and `camera_name` where a data set has them.

    Raises:
        UserError: a data set has no training split.
    """
    selected: list[Dataset] = []
    persons: list[tuple[str, str, int]] = []
    cameras: list[tuple[str, int]] = []
    for source, dataset in datasets.items():
        if "train" not in dataset:
            raise UserError(f"data set {source}: has {', '.join(dataset)}: it has no training split to combine")
        for split_name in [split for split in dataset if split == "train" or all_splits]:
            split = dataset[split_name]
            split = split.select_columns([c for c in split.column_names if c in {*FEATURES, *NAME_COLUMNS}])
            if split_name == "query" and "gallery" in dataset:
                # Caption queries are images of the gallery too, and training uses each image once.
                in_gallery = set(dataset["gallery"]["file_name"])
                split = split.select([row for row, name in enumerate(split["file_name"]) if name not in in_gallery])
            people = "test" if split_name in ("query", "gallery") else split_name
            selected.append(split)
            persons += [(source, people, person) for person in split["person_id"]]
            cameras += [(source, camera) for camera in split["camera_id"]]
    # The numbers change, the names stay. A data set without names has empty ones.
    name_columns = [column for column in NAME_COLUMNS if any(column in split.column_names for split in selected)]
    combined = concatenate_datasets([_with_columns(split, name_columns) for split in selected])
    numbers = {key: number for number, key in enumerate(sorted(set(persons)))}
    known = sorted({key for key in cameras if key[1] != UNKNOWN_CAMERA})
    camera_numbers = {key: number for number, key in enumerate(known)}
    for column, values in (
        ("person_id", [numbers[key] for key in persons]),
        ("camera_id", [camera_numbers.get(key, UNKNOWN_CAMERA) for key in cameras]),
    ):
        combined = combined.remove_columns(column).add_column(column, values, feature=FEATURES[column])
    return combined.select_columns([*FEATURES, *name_columns])


def _with_columns(split: Dataset, columns: Sequence[str]) -> Dataset:
    """Adds the missing ones of these columns of names to the split, with empty cells."""
    for column in columns:
        if column not in split.column_names:
            split = split.add_column(column, [None] * len(split), feature=OPTIONAL_FEATURES[column])
    return split
