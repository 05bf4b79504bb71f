"""Licences of language models that reach into what their texts may be used for."""

from collections.abc import Iterable, Mapping
from typing import Any

from transformers import PreTrainedConfig

from ..errors import UserError

# The Llama 2 community licence forbids improving other large language models with Llama's output (section 1.b.v).
LLAMA2 = "llama2"
RESTRICTED = {LLAMA2: "llama"}


def licence_of(config: PreTrainedConfig) -> str | None:
    """The licence that an architecture speaks for: "llama2" for a LLaVA on a Llama; None where it does not."""
    text = config.get_text_config()
    return LLAMA2 if config.model_type == "llava" and text.model_type == "llama" else None


def refuse_licences(provenances: Iterable[Mapping[str, Any]], config: PreTrainedConfig, *, allow: bool) -> None:
    """Raises UserError where texts of a restricted licence would train another language model, unless allowed.

    provenances: of the captions and continuations. config: of the model that is trained.
    """
    family = config.get_text_config().model_type
    for provenance in provenances:
        licence = provenance.get("licence")
        if licence in RESTRICTED and RESTRICTED[licence] != family and not allow:
            raise UserError(
                f"texts written by {provenance.get('model')} under the licence {licence!r} may not train another "
                f"language model, and this one is of the family {family!r}: use other texts, or set allow_licence "
                "where your licence permits it"
            )
