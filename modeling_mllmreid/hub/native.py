"""Writes a native LLaVA: the files that plain transformers loads, and a card."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from transformers import (
    AutoModel,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from ..data.licences import LLAMA2, LLAMA2_NOTICE
from ..model import MllmReIDModel, MllmReIDProcessor
from ..model.backbones import tower_of
from ..model.publishing import is_local, last_name
from ..utils.errors import UserError
from ..utils.markdown import code, escape
from ..utils.outputs import AnyPath, atomic_folder

UNKNOWN = "unknown"


@dataclass
class NativeLlava:
    """A LLaVA of transformers, and the files that it needs.

    Args:
        mllm (`LlavaForConditionalGeneration`): The model.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, with the image token.
        image_processor (`BaseImageProcessor`): Its image processor, for square images.
        prefix_tokens (`int`): Tokens that the tower puts in front of its patches: class token and registers.
    """

    mllm: LlavaForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    image_processor: Any
    prefix_tokens: int


@dataclass
class Source:
    """A model that a LLaVA was made of, for the card.

    Args:
        role (`str`): What it is in the LLaVA.
        name (`str`): Its name on the Hub, or its folder.
        licence (`str`, *optional*): Its licence; None if it is not recorded.
    """

    role: str
    name: str
    licence: str | None


def count_prefix_tokens(config: PreTrainedConfig) -> int:
    """Returns how many tokens a tower puts in front of its patches, from a run without weights.

    Args:
        config (`PreTrainedConfig`): Configuration of a vision tower.

    Raises:
        ValueError: The tower does not return hidden states of all patches, as a LLaVA reads them.
    """
    remedy = "give a tower such as CLIP, SigLIP, DINOv2 or ViT"
    patches: int = (config.image_size // config.patch_size) ** 2
    try:
        with torch.device("meta"):
            tower = AutoModel.from_config(config)
            image = torch.empty(1, getattr(config, "num_channels", 3), config.image_size, config.image_size)
            states = tower(image, output_hidden_states=True, return_dict=True).hidden_states
        sizes = {tuple(state.shape) for state in states}
    except Exception as error:  # the forward of a foreign encoder fails in any way
        reason = " ".join(str(error).split())[:150]
        raise ValueError(f"type {config.model_type!r} cannot run on pixels alone ({reason}): {remedy}") from error
    tokens: int = next(iter(sizes))[1]
    fits = len(states) == config.num_hidden_layers + 1 and tokens >= patches
    if not fits or sizes != {(1, tokens, config.hidden_size)}:
        raise ValueError(f"type {config.model_type!r} has no hidden state of every patch after every block: {remedy}")
    if tokens - patches != (known := tower_of(config).prefix_tokens):
        raise ValueError(
            f"type {config.model_type!r} has {tokens - patches} states in front of the patches, not {known}: {remedy}"
        )
    return tokens - patches


def native_llava(model: MllmReIDModel, processor: MllmReIDProcessor, dtype: torch.dtype) -> NativeLlava:
    """Returns the LLaVA inside a model, with its LoRA merged. Its configuration keeps the data sets of the training.

    Args:
        model ([`MllmReIDModel`]): The model, changed in place.
        processor ([`MllmReIDProcessor`]): Its processor. The image processor of the result makes square images.
        dtype (`torch.dtype`): Format of all weights.

    Raises:
        UserError: The model is not a LLaVA, or its weights cannot take the LoRA in.
    """
    record = model.config
    if record.mllm_config.model_type != "llava":
        raise UserError(f"to native: is written for a LLaVA, and this one is a {record.mllm_config.model_type}")
    try:
        model.merge_and_unload()
    except ValueError as error:
        raise UserError(f"to native: {error}") from error
    mllm: LlavaForConditionalGeneration = model.mllm.to(dtype)
    mllm.config.dtype = dtype
    for name in ("trained_on", "overlap", "base_licence"):
        if getattr(record, name):
            setattr(mllm.config, name, getattr(record, name))
    tower: Any = mllm.config.vision_config
    prefix_tokens = count_prefix_tokens(tower)
    patches = mllm.config.image_seq_length - max(prefix_tokens - 1, 0)
    side = math.isqrt(patches)
    pixels = side * tower.patch_size if side**2 == patches else tower.image_size
    image_processor = copy.deepcopy(processor.image_processor)
    image_processor.size = {"height": pixels, "width": pixels}
    return NativeLlava(mllm, processor.tokenizer, image_processor, prefix_tokens)


def write_native(llava: NativeLlava, folder: AnyPath, *, sources: Sequence[Source], text: str) -> None:
    """Writes a native LLaVA with its card. The folder appears when it is complete.

    Args:
        llava (`NativeLlava`): The model and its files.
        folder (`str` or `os.PathLike`): The new folder.
        sources (`Sequence[Source]`): The models that it was made of.
        text (`str`): Markdown: what the model is, and what to do with it.

    Raises:
        UserError: The folder is not empty, or the disk cannot be written.
    """
    config: Any = llava.mllm.config
    processor = LlavaProcessor(
        llava.image_processor,
        llava.tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        num_additional_image_tokens=llava.prefix_tokens,
        image_token=llava.tokenizer.convert_ids_to_tokens(config.image_token_id),
        chat_template=llava.tokenizer.chat_template,
    )
    with atomic_folder(folder) as temporary:
        llava.mllm.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        # Also where versions of transformers before 5 look for them.
        llava.image_processor.save_pretrained(temporary)
        (temporary / "README.md").write_text(_card(Path(folder).name, sources, text), encoding="utf-8")
        if LLAMA2 in [source.licence for source in sources]:
            (temporary / "NOTICE").write_text(LLAMA2_NOTICE, encoding="utf-8")


def _card(name: str, sources: Sequence[Source], text: str) -> str:
    """Returns the card in Markdown. Its metadata hold the licences of all sources."""
    licences = list(dict.fromkeys(", ".join(source.licence or UNKNOWN for source in sources).split(", ")))
    on_hub = [source.name for source in sources if not is_local(source.name)]
    metadata = ModelCardData(
        license=licences[0] if len(licences) == 1 else licences,  # type: ignore[arg-type]  # the Hub reads lists too
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["llava", "mllmreid"],
        base_model=on_hub or None,
    )
    lines = [
        f"| {escape(source.role)} | {code(source.name if source.name in on_hub else last_name(source.name))} | "
        f"{escape(source.licence or 'not recorded')} |"
        for source in sources
    ]
    table = "\n".join(["| | model | licence |", "|---|---|---|", *lines])
    return (
        f"---\n{metadata.to_yaml()}\n---\n# {escape(name)}\n{text}\n\n{table}\n\nEach licence holds for its weights.\n"
    )
