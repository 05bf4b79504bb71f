"""Training of an encoder without a language model: its options, full, LoRA or frozen."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import nn

from ..model import ImageEncoder, MllmReIDVisionModel
from ..utils.errors import UserError
from .adapters import LANGUAGE_FIELDS, LORA_FIELDS, AdapterArguments
from .batch_arguments import IMAGE_SETTINGS, BatchArguments
from .modules import IN_BLOCK
from .parameters import matches

# Options of `train` that need a language model; fields of the model's configuration refuse themselves.
LANGUAGE_OPTIONS = (
    *LANGUAGE_FIELDS,
    *(field.name for field in fields(BatchArguments) if field.name not in IMAGE_SETTINGS),
    "pairs_per_batch",
)


def refuse_language_options(given: Mapping[str, Any]) -> None:
    """Raises UserError for an option that needs a language model. given: the options that the user set."""
    for name in LANGUAGE_OPTIONS:
        if given.get(name) is not None:
            raise UserError(f"{name}: an encoder without a language model has none: leave it out")


def encoder_adapters(config: Any) -> dict[str, Any] | None:
    """Returns the adapter settings of a checkpoint with a LoRA on its encoder, fields of [`AdapterArguments`].

    Args:
        config (`MllmReIDVisionConfig`): Configuration of the checkpoint.

    Returns:
        `dict[str, Any]`: None without a LoRA.
    """
    if config.lora_modules is None:
        return None
    return {"tower": "lora", **{name: getattr(config, name) for name in LORA_FIELDS}}


def refuse_other_encoder_adapters(options: Mapping[str, Any], stored: Mapping[str, Any], checkpoint: str) -> None:
    """Raises UserError if an option differs from the LoRA of a checkpoint.

    Args:
        options (`Mapping[str, Any]`): Fields of [`AdapterArguments`] that the user set.
        stored (`Mapping[str, Any]`): Settings of the checkpoint, from `encoder_adapters`.
        checkpoint (`str`): Name of the checkpoint, for the message.
    """
    for name, value in options.items():
        if name in stored and value != stored[name]:
            raise UserError(
                f"{name} {value}: the encoder of {checkpoint} has a LoRA with {stored[name] or 'none'}, and further "
                "training keeps it: leave it out, or merge the LoRA first (mllmreid export --to vision)"
            )


def prepare_encoder(model: MllmReIDVisionModel, args: AdapterArguments) -> None:
    """Freezes the encoder, or adds a LoRA to it.

    Args:
        model (`MllmReIDVisionModel`): The model, changed in place.
        args (`AdapterArguments`): What is trained; only `tower` and the LoRA's settings have a meaning.

    Raises:
        UserError: `lora_targets` matches no layer, the encoder has no linear layers in its blocks, or PEFT is missing.
    """
    if args.tower == "full":
        return
    model.tower.requires_grad_(False)
    if args.tower == "frozen":
        return
    if model.config.lora_modules is None:
        settings = {"r": args.lora_rank, "lora_alpha": args.lora_alpha, "lora_dropout": args.lora_dropout}
        layers = _lora_layers(model, args)
        try:
            model.add_lora({**settings, "target_modules": layers})
        except (ImportError, ValueError) as error:
            raise UserError(f"tower lora: {' '.join(str(error).split())[:200]}") from error
        model.config.lora_targets = args.lora_targets
    for name, parameter in model.tower.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def use_fast_layout(model: ImageEncoder, device: torch.device) -> None:
    """Stores the weights with the channels last in memory, if the encoder is faster with them on the device.

    Args:
        model (`MllmReIDModel` or `MllmReIDVisionModel`): The model, changed in place; its values stay.
        device (`torch.device`): The device that it runs on.
    """
    if device.type == "cpu" and isinstance(model, MllmReIDVisionModel) and model.config.tower.prefers_channels_last:
        model.tower.to(memory_format=torch.channels_last)


def _lora_layers(model: MllmReIDVisionModel, args: AdapterArguments) -> list[str]:
    """Returns the names of the encoder's layers that get a LoRA: those of the user's expression, or all linear ones."""
    modules = model.tower.named_modules()
    if args.lora_targets:
        # PEFT would match the expression itself, without a time limit.
        names = [name for name, _ in modules if matches(args.lora_targets, name, "lora_targets", whole=True)]
        if not names:
            raise UserError(f"lora_targets {args.lora_targets}: matches no module of the encoder: correct it")
        return names
    names = [name for name, module in modules if isinstance(module, nn.Linear) and IN_BLOCK.search(f".{name}")]
    if not names:
        raise UserError("tower lora: the encoder has no linear layers in its blocks: set tower to full or frozen")
    return names


def encoder_settings(args: AdapterArguments) -> dict[str, Any]:
    """Returns the settings of an encoder's training that a LoRA checkpoint must agree with."""
    return {name: value for name, value in asdict(args).items() if name == "tower" or args.has_lora}
