"""The leak guard: people who are tested on must not have been trained on, under the name of another set either."""

from collections.abc import Iterable, Mapping

from ..errors import UserError

# set -> the sets whose images it is made of, test people among them (its authors' papers).
MADE_OF: Mapping[str, tuple[str, ...]] = {
    "cuhk_pedes": ("cuhk01", "cuhk03", "market1501", "viper", "cuhk_sysu"),
    "icfg_pedes": ("msmt17",),
    "rstpreid": ("msmt17",),
    "occluded_duke": ("dukemtmc",),
}


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
