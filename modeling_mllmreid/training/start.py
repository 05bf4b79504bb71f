"""The start of a training: a model and its processor by name, with the options of `train`."""

import os
from dataclasses import fields
from typing import Any

import torch
from transformers import set_seed

from ..data.licences import licence_of
from ..model import ImageEncoder, ImageEncoderProcessor
from ..options.arguments import MethodArguments, ModelArguments
from ..options.parser import build_options, read_mapping
from .adapters import AdapterArguments
from .loading import load_encoder, resolve_adapters

GROUPS = (ModelArguments, MethodArguments, AdapterArguments)
# The names of the options of a model.
MODEL_OPTIONS = frozenset(field.name for group in GROUPS for field in fields(group))


def load_for_training(
    model: str | os.PathLike[str], *, seed: int = 42, device: torch.device | None = None, **options: Any
) -> tuple[ImageEncoder, ImageEncoderProcessor]:
    """Loads a model to train and its processor, as the command `train` does.

    Args:
        model (`str` or `os.PathLike`): A checkpoint of ours, a multimodal LLM or a vision encoder: a folder, a name on
            the Hub such as `"facebook/dinov2-small"`, or the name of a model that comes with the package.
        seed (`int`): Seed of torch, NumPy and Python, set before the new head and a new LoRA are drawn.
        device (`torch.device`, *optional*): Device of quantised weights, which cannot move later: `args.device` of
            the training arguments with several processes. A GPU by default.
        **options: Options of `train` for the model, by the same names: `revision` and `dtype`, fields of the
            configuration such as `height`, `width`, `loss_lambda` and `reid_on`, and what is trained, such as `tower`,
            `language_model`, `lora_rank` and `quantize`. `mllmreid train --help_all` lists them.

    Returns:
        `tuple`: `MllmReIDModel` with `MllmReIDProcessor`, or without a language model `MllmReIDVisionModel` with
        `MllmReIDVisionProcessor`; on the CPU unless quantised.

    Raises:
        UserError: The name cannot be loaded, or an option is unknown, has a wrong value or does not fit the model.

    Example:
        >>> from modeling_mllmreid import load_for_training
        >>> model, processor = load_for_training("pedestrians-small", tower="frozen", triplet_margin=0.5)
        >>> type(model).__name__, model.config.triplet_margin, (processor.height, processor.width)
        ('MllmReIDVisionModel', 0.5, (128, 64))
        >>> any(parameter.requires_grad for parameter in model.tower.parameters())
        False
    """
    given = read_mapping(GROUPS, {"model": model, **options}, "load_for_training")
    model_args, method_args = build_options((ModelArguments, MethodArguments), given, "load_for_training")
    adapters = resolve_adapters(model_args, given)
    # New heads are random: a run that is killed before its first checkpoint starts again with the same heads.
    set_seed(seed)
    loaded, processor = load_encoder(model_args, method_args.given(), adapters, device)
    loaded.config.base_licence = loaded.config.base_licence or licence_of(
        model_args.model, revision=model_args.revision
    )
    return loaded, processor
