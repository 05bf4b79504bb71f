"""The leak guard: people who are tested on must not have been trained on, under the name of another set either."""

from collections.abc import Iterable, Mapping, Sequence

from datasets import Dataset, DatasetDict

from ..utils.errors import UserError
from .combinations import parse_combination
from .contract import join_names

# set -> the sets whose images it is made of, test people among them (its authors' papers).
MADE_OF: Mapping[str, tuple[str, ...]] = {
    "cuhk_pedes": ("cuhk01", "cuhk03", "market1501", "viper", "cuhk_sysu"),
    "icfg_pedes": ("msmt17",),
    "rstpreid": ("msmt17",),
    "occluded_duke": ("dukemtmc",),
}

# Sets that number the people of each split by themselves, or may: equal numbers are no equal people.
NUMBERED_APART = frozenset(
    {"msmt17", "cuhk03", "cuhk_pedes", "icfg_pedes", "rstpreid", "personx", "randperson", "cuhk02", "cuhk_sysu"}
    | {"viper", "prid", "grid", "ilids"}
)
OTHERS = ("val", "query", "gallery")


def overlaps(trained_on: Iterable[str], targets: Iterable[str]) -> list[str]:
    """In words, each way in which test people of the targets may have been trained on.

    trained_on: names of sets, "market1501:all" where a set's test parts were trained on too.
    """
    found = []
    for trained in sorted(set(trained_on)):
        source, _, parts = trained.partition(":")
        for target in sorted(set(targets)):
            if source == target and parts == "all":
                found.append(f"{target}'s own test people are trained on")
            shared = sorted(set(_origins(source)) & set(_origins(target)))
            if source != target and shared:
                found.append(f"{source} and {target} share images of {', '.join(shared)}")
    return found


def refuse_overlaps(trained_on: Iterable[str], targets: Iterable[str], *, allow: bool) -> list[str]:
    """The overlaps, where they are allowed. Raises UserError naming all of them where they are not."""
    found = overlaps(trained_on, targets)
    if found and not allow:
        raise UserError(
            f"leak: {'; '.join(found)}: leave out that set or that target, or set allow_overlap, which the model's "
            "configuration and card will say"
        )
    return found


def _origins(source: str) -> tuple[str, ...]:
    """The set itself and those that it is made of."""
    return (source, *MADE_OF.get(source, ()))


def shared_people(dataset: Mapping[str, Dataset]) -> dict[str, list[str]]:
    """The names of people of `train` who are in val, query or gallery too: "train and query" -> names, sorted.

    People are told apart by their names and, in data without names, by their numbers; by numbers only where both
    splits are of one data set that numbers all its people once, which MSMT17 and other published sets do not.
    """
    if "train" not in dataset:
        return {}
    pairs = {f"train and {other}": _shared(dataset["train"], dataset[other]) for other in OTHERS if other in dataset}
    return {pair: names for pair, names in pairs.items() if names}


def refuse_shared_people(
    dataset: Mapping[str, Dataset], *, remedy: str, where: str = "", allow: bool = False
) -> list[str]:
    """How many people of `train` are in val, query or gallery too, a line for each, where that is allowed.

    The lines name nobody: a model's configuration and card travel. Raises UserError, which names them, where it is not.
    """
    lines = shared_people_lines(dataset)
    if lines and not allow:
        raise UserError(f"{where}{'; '.join(lines)}: {remedy}")
    shared = shared_people(dataset).items()
    return [f"{len(names):,} {'person is' if len(names) == 1 else 'people are'} in {pair}" for pair, names in shared]


def shared_people_lines(dataset: Mapping[str, Dataset]) -> list[str]:
    """A line for each of the splits that share people with `train`: "anna, ben and 3 more are in train and query"."""
    shared = shared_people(dataset).items()
    return [f"{join_names(names)} {'is' if len(names) == 1 else 'are'} in {pair}" for pair, names in shared]


def _shared(one: Dataset, other: Dataset) -> list[str]:
    if all("person_name" in split.column_names for split in (one, other)):
        keys = [zip(split["source"][:], split["person_name"][:], strict=True) for split in (one, other)]
        return sorted({name for _, name in set(keys[0]) & set(keys[1]) if name is not None})
    sources = {*one["source"][:], *other["source"][:]}
    if len(sources) != 1 or sources & NUMBERED_APART:
        return []
    return [str(number) for number in sorted(set(one["person_id"][:]) & set(other["person_id"][:]))]


def what_is_trained_on(
    name: str, dataset: DatasetDict, *, targets: Sequence[str], allow_overlap: bool
) -> tuple[list[str], list[str]]:
    """The names of the sets in the training part, ":all" behind those whose test people are in it, and the overlaps.

    Raises UserError for overlaps that are not allowed.
    """
    combination = parse_combination(name)
    sources = sorted(set(dataset["train"]["source"])) if "train" in dataset else []
    trained_on = [f"{source}:all" if combination and combination.all_parts else source for source in sources]
    tested_on = {*targets, *(combination.targets if combination else ())}
    if "query" in dataset:
        tested_on |= set(dataset["query"]["source"])
    remedy = "take them out of one of the two, or set allow_overlap, which the model's configuration and card will say"
    shared = refuse_shared_people(dataset, remedy=remedy, where="leak: ", allow=allow_overlap)
    return trained_on, [*refuse_overlaps(trained_on, tested_on, allow=allow_overlap), *shared]
