"""The published counts of the data sets, and the check of a data set against them."""

from collections.abc import Mapping, Sequence

from datasets import Dataset

from .contract import Counts
from .readers.caption_sets import CUHK_PEDES, ICFG_PEDES, RSTPREID
from .readers.cuhk import CUHK02_PUBLISHED, SYSU_PUBLISHED
from .readers.cuhk import PUBLISHED as CUHK03
from .readers.market1501 import DUKEMTMC, MARKET1501, OCCLUDED_DUKE
from .readers.msmt17 import PUBLISHED as MSMT17
from .readers.msmt17 import PUBLISHED_TRAIN as MSMT17_TRAIN

# Source -> the counts of each published version. The sets with ten random splits have none.
PUBLISHED: Mapping[str, Sequence[Counts]] = {
    **{spec.source: (spec.published,) for spec in (MARKET1501, DUKEMTMC, OCCLUDED_DUKE)},
    **{spec.source: (spec.published,) for spec in (CUHK_PEDES, ICFG_PEDES, RSTPREID)},
    "cuhk02": (CUHK02_PUBLISHED,),
    "cuhk03": tuple(CUHK03.values()),
    "cuhk_sysu": (SYSU_PUBLISHED,),
    "msmt17": tuple({**MSMT17, "train": train} for train in MSMT17_TRAIN.values()),
}


def published_counts(dataset: Mapping[str, Dataset]) -> dict[str, bool]:
    """Compares the splits of each source with its published counts.

    Args:
        dataset (`Mapping[str, Dataset]`): splits of the data contract by name, of one source or of several.

    Returns:
        `dict[str, bool]`: for each source with published counts, whether its numbers of images and people agree.
    """
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for name, split in dataset.items():
        persons_by_source: dict[str, list[int]] = {}
        for source, person in zip(split["source"][:], split["person_id"][:], strict=True):
            persons_by_source.setdefault(source, []).append(person)
        for source, persons in persons_by_source.items():
            counts.setdefault(source, {})[name] = {"samples": len(persons), "identities": len(set(persons))}
    return {
        source: has_published_counts(source, of_source)
        for source, of_source in sorted(counts.items())
        if source in PUBLISHED
    }


def has_published_counts(source: str, counts: Counts) -> bool:
    """Returns whether counts are those of a published version of a source.

    Args:
        source (`str`): the name of the data set.
        counts (`Counts`): split -> numbers of "samples" and "identities". A number that is not given is not compared,
            and neither is a split without published counts.

    Returns:
        `bool`: whether one version has at least one of these splits and contradicts none of the numbers.
    """
    return any(
        bool(counts.keys() & published.keys())
        and all(
            number == published[split].get(kind, number)
            for split, numbers in counts.items()
            if split in published
            for kind, number in numbers.items()
        )
        for published in PUBLISHED.get(source, ())
    )
