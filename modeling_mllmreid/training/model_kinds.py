"""Kinds of models: what `--model` names, by its config.json, and the errors of loading it."""

import difflib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig
from transformers.utils.generic import is_timm_config_dict

from ..evaluation.onnx_files import refuse_single_file
from ..model import MllmReIDConfig, MllmReIDVisionConfig
from ..model.backbones import FAMILIES
from ..model.encoders import vision_part
from ..model.weights import CONFIG, read_config, read_fields
from ..options.arguments import ModelArguments
from ..utils.errors import UserError, is_our_fault
from ..utils.json_files import refuse_special_files

logger = logging.getLogger(__name__)

# What `model_type` returns for a native vision encoder.
ENCODER = "encoder"
WITHOUT_LANGUAGE_MODEL = (ENCODER, MllmReIDVisionConfig.model_type)
MODELS = (
    f"give a checkpoint of ours, a vision encoder, or a native model of {', '.join(FAMILIES)}; docs/backbones.md shows "
    "how to add a family in one file of about 60 lines"
)


def model_type(arguments: ModelArguments) -> str:
    """Returns the `model_type` of a checkpoint of ours or of a native multimodal LLM, or "encoder".

    Args:
        arguments (`ModelArguments`): Name or folder of the model.

    Raises:
        UserError: Another kind of model, or none.
    """
    refuse_single_file(arguments.model)
    if os.path.isdir(arguments.model):
        refuse_special_files(arguments.model)
    remedy = "give a checkpoint's folder (for --dry_run its config.json is enough) or a Hub name"
    revision = revision_option(arguments)
    # A folder with a wrong name gets the Hub's message, which is about connections.
    problem = "not loadable"
    if not os.path.isdir(arguments.model):
        nearest = _nearest_folder(arguments.model)
        problem = f"not loadable: no such folder{nearest}, and not from the Hub"
        if nearest:
            # Without network the answer takes half a minute.
            logger.warning("model %s: no such folder%s: asking the Hub", arguments.model, nearest)
    with loading_errors(arguments.model, problem, remedy):
        fields = read_fields(arguments.model, CONFIG, revision, required=True) or {}
    kind = fields.get("model_type")
    if kind in (MllmReIDConfig.model_type, MllmReIDVisionConfig.model_type, *FAMILIES):
        return str(kind)
    if kind is None and not is_timm_config_dict(fields):
        raise UserError(f"model {arguments.model}: config.json has no model_type: {MODELS}")
    with loading_errors(arguments.model, remedy=MODELS):
        vision_part(read_config(AutoConfig, arguments.model, revision, trust_remote_code=False))
    return ENCODER


def _nearest_folder(name: str) -> str:
    """Returns a question with the folder whose name is most similar to a missing one; empty if there is none."""
    parent, last = os.path.split(os.path.normpath(name))
    try:
        folders = [entry.name for entry in os.scandir(parent or ".") if entry.is_dir()]
    except (OSError, ValueError):
        return ""
    nearest = difflib.get_close_matches(last, folders, n=1)
    return f" (did you mean {ascii(os.path.join(parent, nearest[0]))}?)" if nearest else ""


def revision_option(arguments: ModelArguments) -> dict[str, Any]:
    """Returns the revision as a keyword argument of `from_pretrained`, or nothing where none is set."""
    return {} if arguments.revision is None else {"revision": arguments.revision}


@contextmanager
def loading_errors(name: str, problem: str = "", remedy: str = "") -> Iterator[None]:
    """Turns exceptions of a broken or foreign model within the block into UserError; bugs of this package pass."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        expected = isinstance(error, OSError | ValueError | ImportError | SafetensorError)
        if not expected and is_our_fault(error):
            raise
        reason = " ".join(str(error).split())[:300]
        reason = reason if expected else f"{type(error).__name__}: {reason}"
        message = f"{problem} ({reason})" if problem else reason
        raise UserError(f"model {name}: {message}{f': {remedy}' if remedy else ''}") from error
