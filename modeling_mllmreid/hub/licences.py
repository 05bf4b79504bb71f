"""What the terms of data sets and base models ask of whoever uses weights that were made with them."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from ..model import MllmReIDConfig
from ..text.licences import licence_of

_RESEARCH = "for research only"
_WITHDRAWN = "withdrawn by its authors in 2019, since those pictured had not consented: not to be used further"
_FROM_MSMT17 = f"made of MSMT17's images, {_RESEARCH}"
UNKNOWN_TERMS = "see the data set's own terms"
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
    "rendered pedestrians": "rendered by this project, no real person; Apache-2.0",
}

LLAMA2_NOTICE = """\
Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights Reserved.

The language model in this folder has Llama's architecture, as LLaVA-1.5's, whose weights are under that licence.
Whoever passes these weights on passes on this notice and a copy of the licence: https://ai.meta.com/llama/license/
"""


def data_licence(source: str) -> str:
    """A data set's terms in one line."""
    return DATA_LICENCES.get(source, UNKNOWN_TERMS)


def base_licence(config: Mapping[str, Any]) -> str | None:
    """The licence of the nested LLaVA by its architecture: "llama2" or None; None for a vision form.

    config: of our model, as config.json holds it.
    """
    if config.get("model_type") != MllmReIDConfig.model_type:
        return None
    return licence_of(AutoConfig.for_model(**{"model_type": "llava", **(config.get("mllm_config") or {})}))
