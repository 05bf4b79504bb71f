"""Licences of models, of generated texts and of data sets, and what they require."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml
from huggingface_hub import metadata_load
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from ..synthetic.worlds import PEDESTRIANS, WORLDS
from ..utils.errors import UserError
from ..utils.json_files import read_json
from .published import PUBLISHED

# The Llama 2 community licence forbids improving other large language models with Llama's output (section 1.b.v).
LLAMA2 = "llama2"
OURS = "mllmreid"
RESTRICTED = {LLAMA2: "llama"}
# Known by name where no card can be read; a folder of LLaVA-1.5 names the Vicuna inside.
KNOWN = {
    LLAMA2: re.compile(
        r"llava-hf/llava-1\.5-.+|llava-hf/llava-v1\.6-vicuna-.+|liuhaotian/llava-v1\.5-.+|lmsys/vicuna-.+-v1\.5.*|"
        r"meta-llama/llama-2-.+",
        re.IGNORECASE,
    )
}
# A model without a card, and a Hub out of reach, are no errors.
QUIET = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}
# What the Hub's index and a licence's own name are made of.
LICENCE_NAME = re.compile(r"[A-Za-z0-9][\w .,+()-]{0,79}", re.ASCII)


def licence_of(model: str | os.PathLike[str], *, revision: str | None = None) -> str | None:
    """The licence of a base model, a folder or a name on the Hub, in the Hub's words; None where it is not recorded.

    A native model's is what its own card says, else what goes with its published name, or with that of the language
    model that its configuration names; a checkpoint of ours keeps its base's. Never guessed from an architecture:
    Llama's is that of models under many licences. What cannot be read, or reached, records nothing.
    """
    name = os.fspath(model)
    config = _config(name, revision)
    if not str(config.get("model_type")).startswith(OURS):
        return _of_card(_file(name, "README.md", revision)) or licence_of_names([name]) or licence_in_config(config)
    backbone, kept = config.get("backbone"), licence_in_config(config)
    if kept is not None or not isinstance(backbone, str):
        return kept
    at = config.get("backbone_revision")
    below = _config(backbone, at)
    native = not str(below.get("model_type")).startswith(OURS)
    return (_of_card(_file(backbone, "README.md", at)) if native else None) or licence_in_config(below)


def licence_in_config(config: Mapping[str, Any]) -> str | None:
    """The licence that a configuration records, or that goes with the names of published models in it."""
    recorded = config.get("base_licence")
    return normal_licence(recorded) if recorded else licence_of_names(origins(config))


def licence_of_names(names: Iterable[str]) -> str | None:
    """The licence that goes with the first name of a published model that is known."""
    return next((licence for name in names for licence, known in KNOWN.items() if known.fullmatch(name)), None)


def origins(value: Any) -> Iterator[str]:
    """The names of models that a configuration was made from, at every depth."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in ("_name_or_path", "backbone") and isinstance(item, str):
                yield item
            else:
                yield from origins(item)


def normal_licence(said: Any) -> str | None:
    """A licence in the Hub's way of writing; None for what is no licence's name."""
    if not isinstance(said, str) or not LICENCE_NAME.fullmatch(said.strip()):
        return None
    name = said.strip().lower()
    return LLAMA2 if re.sub(r"[\W_]", "", name) in ("llama2", "llama2community", "llama2communitylicense") else name


def refuse_licences(
    provenances: Iterable[Mapping[str, Any]], config: PreTrainedConfig, *, allow: bool, licence: str | None = None
) -> None:
    """Raises UserError where texts of a restricted licence would train another language model, unless allowed.

    provenances: of the captions and continuations; those without a recorded licence say nothing. config: of the model
    that is trained; licence: its base's. Where that is not recorded, a language model of the same family passes.
    """
    family, own = config.get_text_config().model_type, normal_licence(licence)
    for provenance in provenances:
        of_texts = normal_licence(provenance.get("licence"))
        if of_texts not in RESTRICTED or allow:
            continue
        if own != of_texts and (own is not None or RESTRICTED[of_texts] != family):
            what = f"of the family {family!r}" + (f", under the licence {own!r}" if own else "")
            raise UserError(
                f"texts written by {provenance.get('model')} under the licence {of_texts!r} may not train another "
                f"language model, and this one is {what}: use other texts, or set allow_licence where your licence "
                "permits it"
            )


def _config(name: str, revision: str | None) -> dict[str, Any]:
    """The fields of a model's config.json; none where it cannot be read: what is wrong, who loads the model says."""
    path = _file(name, "config.json", revision)
    try:
        return read_json(path, dict[str, Any]) if path else {}
    except UserError:
        return {}


def _file(name: str, file: str, revision: str | None) -> str | None:
    """The file's path on this disk, or None where there is none or the Hub is out of reach."""
    try:
        return cached_file(name, file, revision=revision, **QUIET)
    except (OSError, ValueError):
        return None


def _of_card(path: str | None) -> str | None:
    """The licence in a card's front matter."""
    try:
        front = (metadata_load(path) if path else None) or {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    said = front.get("license")
    if said == "other":
        said = front.get("license_name")
    several = [normal_licence(one) for one in (said if isinstance(said, list) else [said])]
    names = [name for name in several if name]
    return LLAMA2 if LLAMA2 in names else names[0] if len(names) == 1 else ", ".join(names) or None


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
