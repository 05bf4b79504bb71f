"""Whether a data set is the published one: its counts against the papers'."""

from collections.abc import Mapping, Sequence

from datasets import Dataset

from .contract import Counts
from .readers.caption_sets import CUHK_PEDES, ICFG_PEDES, RSTPREID
from .readers.cuhk import CUHK02_PUBLISHED, SYSU_PUBLISHED
from .readers.cuhk import PUBLISHED as CUHK03
from .readers.market1501 import DUKEMTMC, MARKET1501, OCCLUDED_DUKE
from .readers.msmt17 import PUBLISHED as MSMT17
from .readers.msmt17 import PUBLISHED_TRAIN as MSMT17_TRAIN

# By source, each way in which the set is read. Sets that are drawn anew for each split have none.
PUBLISHED: Mapping[str, Sequence[Counts]] = {
    **{spec.source: (spec.published,) for spec in (MARKET1501, DUKEMTMC, OCCLUDED_DUKE)},
    **{spec.source: (spec.published,) for spec in (CUHK_PEDES, ICFG_PEDES, RSTPREID)},
    "cuhk02": (CUHK02_PUBLISHED,),
    "cuhk03": tuple(CUHK03.values()),
    "cuhk_sysu": (SYSU_PUBLISHED,),
    "msmt17": tuple({**MSMT17, "train": train} for train in MSMT17_TRAIN.values()),
}


def published_counts(parts: Mapping[str, Dataset]) -> dict[str, bool]:
    """For each source that has published counts: whether its images and people in these splits are as many.

    parts: splits of the data contract by name, of one set or of several.
    """
    found: dict[str, dict[str, dict[str, int]]] = {}
    for split, part in parts.items():
        people: dict[str, list[int]] = {}
        for source, person in zip(part["source"][:], part["person_id"][:], strict=True):
            people.setdefault(source, []).append(person)
        for source, persons in people.items():
            found.setdefault(source, {})[split] = {"rows": len(persons), "identities": len(set(persons))}
    return {source: has_published_counts(source, of) for source, of in sorted(found.items()) if source in PUBLISHED}


def has_published_counts(source: str, found: Counts) -> bool:
    """Whether these counts of a source's splits, as far as they are given, are published ones; one must be."""
    return any(
        bool(found.keys() & known.keys())
        and all(
            number == known[split].get(kind, number)
            for split, numbers in found.items()
            if split in known
            for kind, number in numbers.items()
        )
        for known in PUBLISHED.get(source, ())
    )
