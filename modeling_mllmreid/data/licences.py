"""Licences of models, of generated texts and of data sets, and their requirements."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import yaml
from huggingface_hub import metadata_load
from transformers import PreTrainedConfig
from transformers.utils.hub import cached_file

from ..synthetic.flat.worlds import WORLDS as FLAT_WORLDS
from ..synthetic.worlds import PEDESTRIANS, WORLDS
from ..utils.errors import UserError
from ..utils.json_files import read_json
from .published import PUBLISHED

# The Llama 2 community licence forbids improving other large language models with Llama's output (section 1.b.v).
LLAMA2 = "llama2"
OWN_MODEL_TYPES = "mllmreid"
# Licence -> the family of language models that its texts may train.
RESTRICTED = {LLAMA2: "llama"}
# Licence -> names of published models. The configuration of a local LLaVA-1.5 still names its Vicuna.
MODELS_BY_LICENCE = {
    LLAMA2: re.compile(
        r"llava-hf/llava-1\.5-.+|llava-hf/llava-v1\.6-vicuna-.+|liuhaotian/llava-v1\.5-.+|lmsys/vicuna-.+-v1\.5.*|"
        r"meta-llama/llama-2-.+",
        re.IGNORECASE,
    )
}
# A model without a card and a Hub that cannot be reached are not errors.
IGNORE_ERRORS = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}
# The form of a licence id on the Hub and of a licence's own name.
LICENCE_NAME = re.compile(r"[A-Za-z0-9][\w .,+()-]{0,79}", re.ASCII)


def licence_of(model: str | os.PathLike[str], *, revision: str | None = None) -> str | None:
    """Returns the licence of a base model.

    For a native model, the sources are in this order: its card, its published name, and the name of the language model
    in its configuration. A checkpoint of this project keeps the licence of its base model. The architecture is no
    source, because Llama models have many licences.

    Args:
        model (`str` or `os.PathLike`): a folder or a name on the Hub.
        revision (`str`, *optional*): the revision on the Hub.

    Returns:
        `str` or `None`: the id of the licence on the Hub, such as "llama2"; None if it is not recorded, or if nothing
        can be read.
    """
    name = os.fspath(model)
    config = _config(name, revision)
    if not _is_own_model(config):
        return (
            _card_licence(_file(name, "README.md", revision)) or licence_of_names([name]) or licence_in_config(config)
        )
    backbone, recorded = config.get("backbone"), licence_in_config(config)
    if recorded is not None or not isinstance(backbone, str):
        return recorded
    backbone_revision = config.get("backbone_revision")
    backbone_config = _config(backbone, backbone_revision)
    card = None if _is_own_model(backbone_config) else _file(backbone, "README.md", backbone_revision)
    return _card_licence(card) or licence_in_config(backbone_config)


def _is_own_model(config: Mapping[str, Any]) -> bool:
    """Returns whether a configuration belongs to a checkpoint of this project and not to a native model."""
    return str(config.get("model_type")).startswith(OWN_MODEL_TYPES)


def licence_in_config(config: Mapping[str, Any]) -> str | None:
    """Returns the licence that a configuration records, or that belongs to the published models in it.

    Args:
        config (`Mapping[str, Any]`): the fields of a `config.json`.

    Returns:
        `str` or `None`: the id of the licence; None if it is unknown.
    """
    recorded = config.get("base_licence")
    return normal_licence(recorded) if recorded else licence_of_names(model_names(config))


def licence_of_names(names: Iterable[str]) -> str | None:
    """Returns the licence of the first model name that `MODELS_BY_LICENCE` knows, or None."""
    return next(
        (licence for name in names for licence, pattern in MODELS_BY_LICENCE.items() if pattern.fullmatch(name)), None
    )


def model_names(value: Any) -> Iterator[str]:
    """Yields the names of the models in a configuration, at every depth."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in ("_name_or_path", "backbone") and isinstance(item, str):
                yield item
            else:
                yield from model_names(item)


def normal_licence(value: Any) -> str | None:
    """Normalises the name of a licence.

    Args:
        value (`Any`): a name, such as "Llama 2 Community License".

    Returns:
        `str` or `None`: the id on the Hub, such as "llama2"; None if the value is not the name of a licence.
    """
    if not isinstance(value, str) or not LICENCE_NAME.fullmatch(value.strip()):
        return None
    name = value.strip().lower()
    return LLAMA2 if re.sub(r"[\W_]", "", name) in ("llama2", "llama2community", "llama2communitylicense") else name


def refuse_licences(
    provenances: Iterable[Mapping[str, Any]], config: PreTrainedConfig, *, allow: bool, licence: str | None = None
) -> None:
    """Refuses to train a language model on texts whose licence forbids it.

    Args:
        provenances (`Iterable[Mapping[str, Any]]`): the provenances of the captions and continuations. A provenance
            without a licence passes.
        config (`PreTrainedConfig`): the configuration of the model that is trained.
        allow (`bool`): whether to allow every text.
        licence (`str`, *optional*): the licence of the base model. If it is not recorded, a language model of the same
            family passes.

    Raises:
        UserError: the licence of a text forbids to train this language model.
    """
    family, model_licence = config.get_text_config().model_type, normal_licence(licence)
    for provenance in provenances:
        text_licence = normal_licence(provenance.get("licence"))
        if text_licence not in RESTRICTED or allow:
            continue
        if model_licence != text_licence and (model_licence is not None or RESTRICTED[text_licence] != family):
            model = f"of the family {family!r}" + (f", under the licence {model_licence!r}" if model_licence else "")
            raise UserError(
                f"texts written by {provenance.get('model')} under the licence {text_licence!r} may not train another "
                f"language model, and this one is {model}: use other texts, or set allow_licence if your licence "
                "permits it"
            )


def _config(name: str, revision: str | None) -> dict[str, Any]:
    """Returns the fields of a model's config.json; none if it cannot be read, which loading the model reports later."""
    path = _file(name, "config.json", revision)
    try:
        return read_json(path, dict[str, Any]) if path else {}
    except UserError:
        return {}


def _file(name: str, file: str, revision: str | None) -> str | None:
    """Returns the path of a model's file; None if there is none or the Hub cannot be reached."""
    try:
        return cached_file(name, file, revision=revision, **IGNORE_ERRORS)
    except (OSError, ValueError):
        return None


def _card_licence(path: str | None) -> str | None:
    """Returns the licence in the metadata of a card."""
    try:
        card = (metadata_load(path) if path else None) or {}
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    licence = card.get("license")
    if licence == "other":
        licence = card.get("license_name")
    names = [name for name in map(normal_licence, licence if isinstance(licence, list) else [licence]) if name]
    return LLAMA2 if LLAMA2 in names else names[0] if len(names) == 1 else ", ".join(names) or None


_RESEARCH = "for research only"
_WITHDRAWN = "withdrawn by its authors in 2019, because the people in it had not consented: do not use it further"
_FROM_MSMT17 = f"made of MSMT17's images, {_RESEARCH}"
UNKNOWN_TERMS = "see the data set's own terms"
# Rendered people. Older checkpoints write the source of the demo with a space.
RENDERED = ("rendered pedestrians", *(f"rendered_{world}" for world in (PEDESTRIANS, *WORLDS, *FLAT_WORLDS)))
# Only certain terms. For all other data sets the card refers to their own terms.
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

The weights in this folder are derived from a model under that licence. If you distribute these weights, include this
notice and a copy of the licence: https://ai.meta.com/llama/license/
"""


def data_licence(source: str, published: bool | None) -> str:
    """Returns the terms of a data set in one line.

    Args:
        source (`str`): the data set.
        published (`bool`, *optional*): whether its counts are the published ones; None if that is not recorded.

    Returns:
        `str`: the terms.
    """
    if source not in PUBLISHED:
        return DATA_LICENCES.get(source, UNKNOWN_TERMS)
    if published is False:
        return f"images in the layout of this set, but not with its published counts; {UNKNOWN_TERMS}"
    check = "the counts are the published ones" if published else "whether it was the published set is not recorded"
    return f"{DATA_LICENCES[source]}; {check}"
