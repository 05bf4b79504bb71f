"""The leakage check: no test person may be in the training data, including data sets that share images."""

from collections.abc import Iterable, Mapping, Sequence

from datasets import Dataset, DatasetDict

from ..utils.errors import UserError
from .combinations import parse_combination
from .contract import join_names

# Data set -> the data sets whose images it contains, test people included (from the papers of its authors).
IMAGE_ORIGINS: Mapping[str, tuple[str, ...]] = {
    "cuhk_pedes": ("cuhk01", "cuhk03", "market1501", "viper", "cuhk_sysu"),
    "icfg_pedes": ("msmt17",),
    "rstpreid": ("msmt17",),
    "occluded_duke": ("dukemtmc",),
}

# Data sets that may number the people of each split separately: equal numbers are not the same person.
NUMBERED_PER_SPLIT = frozenset(
    {"msmt17", "cuhk03", "cuhk_pedes", "icfg_pedes", "rstpreid", "personx", "randperson", "cuhk02", "cuhk_sysu"}
    | {"viper", "prid", "grid", "ilids"}
)
EVALUATION_SPLITS = ("val", "query", "gallery")


def overlaps(trained_on: Iterable[str], targets: Iterable[str]) -> list[str]:
    """Describes each way in which training may have used the test people of the targets.

    Args:
        trained_on (`Iterable[str]`): names of data sets; `"market1501:all"` if training used the test splits too.
        targets (`Iterable[str]`): names of the data sets to test on.

    Returns:
        `list[str]`: one description per overlap.
    """
    descriptions = []
    for trained in sorted(set(trained_on)):
        source, _, suffix = trained.partition(":")
        for target in sorted(set(targets)):
            if source == target and suffix == "all":
                descriptions.append(f"{target}'s own test people are trained on")
            shared = sorted(set(_origins(source)) & set(_origins(target)))
            if source != target and shared:
                descriptions.append(f"{source} and {target} share images of {', '.join(shared)}")
    return descriptions


def refuse_overlaps(trained_on: Iterable[str], targets: Iterable[str], *, allow: bool) -> list[str]:
    """Returns the overlaps if they are allowed. Raises UserError with all of them otherwise."""
    descriptions = overlaps(trained_on, targets)
    if descriptions and not allow:
        raise UserError(
            f"leak: {'; '.join(descriptions)}: leave out that set or that target, or set allow_overlap, which the "
            "model's configuration and card then record"
        )
    return descriptions


def _origins(source: str) -> tuple[str, ...]:
    """Returns the data set itself and the data sets whose images it contains."""
    return (source, *IMAGE_ORIGINS.get(source, ()))


def shared_people(dataset: Mapping[str, Dataset]) -> dict[str, list[str]]:
    """Finds the people of `train` who are also in val, query or gallery.

    A person is identified by name. In data without names it is the number, but only if both splits are of one data set
    that numbers all its people once, which MSMT17 and other published data sets do not.

    Args:
        dataset (`Mapping[str, Dataset]`): splits of the data contract by name.

    Returns:
        `dict[str, list[str]]`: "train and query" -> the sorted names; only pairs that share people.
    """
    if "train" not in dataset:
        return {}
    train = dataset["train"]
    pairs = {f"train and {name}": _shared(train, dataset[name]) for name in EVALUATION_SPLITS if name in dataset}
    return {pair: names for pair, names in pairs.items() if names}


def refuse_shared_people(
    dataset: Mapping[str, Dataset], *, remedy: str, where: str = "", allow: bool = False
) -> list[str]:
    """Returns the number of shared people of each pair of splits, one line per pair, if sharing is allowed.

    The lines contain no names, because they are published in a model's configuration and card.
    Raises UserError with the names if sharing is not allowed.
    """
    lines = shared_people_lines(dataset)
    if lines and not allow:
        raise UserError(f"{where}{'; '.join(lines)}: {remedy}")
    shared = shared_people(dataset).items()
    return [f"{len(names):,} {'person is' if len(names) == 1 else 'people are'} in {pair}" for pair, names in shared]


def shared_people_lines(dataset: Mapping[str, Dataset]) -> list[str]:
    """Describes the people that `train` shares with other splits.

    Args:
        dataset (`Mapping[str, Dataset]`): splits of the data contract by name.

    Returns:
        `list[str]`: one line per pair of splits, such as "anna, ben and 3 more are in train and query".
    """
    shared = shared_people(dataset).items()
    return [f"{join_names(names)} {'is' if len(names) == 1 else 'are'} in {pair}" for pair, names in shared]


def _shared(first: Dataset, second: Dataset) -> list[str]:
    """Returns the people that are in both splits, by name or by number."""
    if all("person_name" in split.column_names for split in (first, second)):
        keys = [zip(split["source"][:], split["person_name"][:], strict=True) for split in (first, second)]
        return sorted({name for _, name in set(keys[0]) & set(keys[1]) if name is not None})
    sources = {*first["source"][:], *second["source"][:]}
    if len(sources) != 1 or sources & NUMBERED_PER_SPLIT:
        return []
    return [str(number) for number in sorted(set(first["person_id"][:]) & set(second["person_id"][:]))]


def training_sources(
    name: str, dataset: DatasetDict, *, targets: Sequence[str], allow_overlap: bool
) -> tuple[list[str], list[str]]:
    """Returns the data sets of the training split and their overlaps with the test people.

    Args:
        name (`str`): the name that `load_reid_dataset` received.
        dataset (`DatasetDict`): the splits that it returned.
        targets (`Sequence[str]`): the data sets that the model will be tested on.
        allow_overlap (`bool`): whether to return overlaps and not to raise.

    Returns:
        `tuple[list[str], list[str]]`: the names of the data sets, with ":all" if their test people are in the
        training split, and one description per overlap.

    Raises:
        UserError: there is an overlap, and it is not allowed.
    """
    combination = parse_combination(name)
    sources = sorted(set(dataset["train"]["source"])) if "train" in dataset else []
    trained_on = [f"{source}:all" if combination and combination.all_splits else source for source in sources]
    tested_on = {*targets, *(combination.targets if combination else ())}
    if "query" in dataset:
        tested_on |= set(dataset["query"]["source"])
    remedy = (
        "take them out of one of the two, or set allow_overlap, which the model's configuration and card then record"
    )
    shared = refuse_shared_people(dataset, remedy=remedy, where="leak: ", allow=allow_overlap)
    return trained_on, [*refuse_overlaps(trained_on, tested_on, allow=allow_overlap), *shared]
