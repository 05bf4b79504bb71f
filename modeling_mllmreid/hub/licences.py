"""What the terms of data sets and base models ask of whoever uses weights that were made with them."""

from collections.abc import Mapping

from ..data.published import PUBLISHED
from ..data.synthetic.marker import PEDESTRIANS
from ..data.synthetic.worlds import WORLDS

_RESEARCH = "for research only"
_WITHDRAWN = "withdrawn by its authors in 2019, since those pictured had not consented: not to be used further"
_FROM_MSMT17 = f"made of MSMT17's images, {_RESEARCH}"
UNKNOWN_TERMS = "see the data set's own terms"
# People who were rendered here; with a space, the demo's people in older checkpoints.
RENDERED = ("rendered pedestrians", *(f"rendered_{world}" for world in (PEDESTRIANS, *WORLDS)))
# Only what is certain; for everything else the card points to the set's own terms.
DATA_LICENCES: Mapping[str, str] = {
    "market1501": _RESEARCH,
    "msmt17": _RESEARCH,
    "cuhk02": _RESEARCH,
    "cuhk03": _RESEARCH,
    "cuhk_sysu": _RESEARCH,
    "cuhk_pedes": f"{_RESEARCH}; made of images of other sets, whose terms hold too",
    "icfg_pedes": _FROM_MSMT17,
    "rstpreid": _FROM_MSMT17,
    "dukemtmc": _WITHDRAWN,
    "occluded_duke": f"made of DukeMTMC-reID's images, {_WITHDRAWN}",
    "personx": f"rendered people, no real person; {UNKNOWN_TERMS}",
    "randperson": f"rendered people, no real person; {UNKNOWN_TERMS}",
    **dict.fromkeys(RENDERED, "rendered by this project, no real person; Apache-2.0"),
}

LLAMA2_NOTICE = """\
Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved.

The weights in this folder began with a model that its publishers put under that licence. Whoever passes these weights
on passes on this notice and a copy of the licence: https://ai.meta.com/llama/license/
"""


def data_licence(source: str, published: bool | None) -> str:
    """A data set's terms in one line. published: whether its counts are the published ones, None where not recorded."""
    if source not in PUBLISHED:
        return DATA_LICENCES.get(source, UNKNOWN_TERMS)
    if published is False:
        return f"images in this set's layout, not the published set by their counts; {UNKNOWN_TERMS}"
    said = "the counts are the published ones" if published else "whether it was the published set is not recorded"
    return f"{DATA_LICENCES[source]}; {said}"
