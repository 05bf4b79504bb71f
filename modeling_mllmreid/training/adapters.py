"""Adapters: full, LoRA or frozen training of the language model and the vision tower, with optional quantisation."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from ..model import MllmReIDConfig, MllmReIDModel
from ..model.adapters import ADAPTER, inject_adapter
from ..model.backbone import Backbone
from ..model.backbone_loading import weights_fingerprint
from ..model.checkpoints import within
from ..utils.errors import UserError
from .modules import linear_layers, tower_parameters
from .parameters import check_pattern, matches

# Settings of the language model.
LANGUAGE_FIELDS = ("language_model", "quantize")
LORA_FIELDS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")


@dataclass
class AdapterArguments:
    """Settings of full training, LoRA and quantisation. The projector and the heads are always trained.

    Args:
        language_model (`str`): "full", "lora" or "frozen".
        tower (`str`): "full", "lora" or "frozen", of the vision tower.
        lora_rank (`int`): Rank of the LoRA.
        lora_alpha (`float`): The LoRA's product is scaled by `lora_alpha / lora_rank`.
        lora_dropout (`float`): Dropout on the LoRA's input, 0 to below 1.
        lora_targets (`str`, *optional*): Regular expression on full module names inside the
            multimodal LLM. By default all linear layers within the numbered blocks.
        quantize (`str`, *optional*): "4bit" or "8bit", of the frozen language model.

    Raises:
        ValueError: A number is out of range, or `quantize` is set for a language model that is trained in full.

    Source: Hu et al. 2021, "LoRA"; Dettmers et al. 2023, "QLoRA".
    """

    language_model: Literal["full", "lora", "frozen"] = field(
        default="full", metadata={"help": "Train the language model: all weights, a LoRA, or nothing."}
    )
    tower: Literal["full", "lora", "frozen"] = field(
        default="full", metadata={"help": "Train the vision tower: all weights, a LoRA, or nothing."}
    )
    lora_rank: int = field(default=16, metadata={"metavar": "N>=1", "help": "Rank of the LoRA."})
    lora_alpha: float = field(
        default=32, metadata={"metavar": "X>0", "help": "The LoRA's product is scaled by lora_alpha / lora_rank."}
    )
    lora_dropout: float = field(default=0.05, metadata={"metavar": "0<=X<1", "help": "Dropout on the LoRA's input."})
    lora_targets: str | None = field(
        default=None,
        metadata={
            "help": "Regular expression on full module names inside the multimodal LLM. Unset: all linear layers."
        },
    )
    quantize: Literal["4bit", "8bit"] | None = field(
        default=None,
        metadata={"help": "Quantise the frozen language model with bitsandbytes; 4bit: nf4, double quantisation."},
    )

    def __post_init__(self) -> None:
        if self.quantize and self.language_model == "full":
            raise ValueError("quantize: weights in 4 or 8 bits cannot be trained: set language_model to lora or frozen")
        if self.lora_rank < 1:
            raise ValueError(f"lora_rank {self.lora_rank}: give at least 1")
        check_pattern(self.lora_targets or "", "lora_targets")
        if not 0 < self.lora_alpha < math.inf:
            raise ValueError(f"lora_alpha {self.lora_alpha}: give a number above 0")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout {self.lora_dropout}: give a number from 0 to below 1")

    @property
    def thin(self) -> bool:
        """Whether checkpoints leave out the backbone, because its language model does not change."""
        return self.language_model != "full"

    @property
    def has_lora(self) -> bool:
        """Whether the language model or the tower is trained by LoRA."""
        return "lora" in (self.language_model, self.tower)

    def to_record(self, *, language: bool = True) -> dict[str, Any]:
        """Returns the settings for `run.json`; LoRA settings only if there is a LoRA.

        Args:
            language (`bool`): Whether the model has a language model.
        """
        left_out = set() if self.has_lora else {*LORA_FIELDS}
        left_out |= set() if language else {*LANGUAGE_FIELDS}
        return {name: value for name, value in asdict(self).items() if name not in left_out}

    def quantization_config(self, dtype: torch.dtype) -> Any:
        """Returns the language model's `BitsAndBytesConfig`, or None. Raises UserError without bitsandbytes."""
        from transformers import BitsAndBytesConfig
        from transformers.utils.import_utils import is_bitsandbytes_available

        if self.quantize is None:
            return None
        if not is_bitsandbytes_available():
            raise UserError(f"quantize {self.quantize}: needs bitsandbytes: pip install bitsandbytes, or leave it out")
        if self.quantize == "8bit":
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )


def apply_adapters(model: MllmReIDModel, args: AdapterArguments, dtype: torch.dtype) -> list[str] | None:
    """Freezes weights and adds the LoRA.

    Trained weights become float32. Unlike PEFT's preparation for quantised training, frozen weights do not.

    Args:
        model (`MllmReIDModel`): The model, changed in place.
        args (`AdapterArguments`): What is trained.
        dtype (`torch.dtype`): Format of the frozen weights.

    Returns:
        `list[str]`: The modules that are trained in full; None if the language model is trained in full.

    Raises:
        UserError: `lora_targets` matches no module or a wrong one, PEFT is missing, or the tower has a LoRA while the
            language model is trained in full.
    """
    mllm, backbone = model.mllm, model.backbone
    if not args.thin:
        # Checkpoints hold every weight then, so a LoRA saves nothing.
        if args.has_lora:
            raise UserError(
                "tower is lora, language_model full: set language_model to lora or frozen, or tower to full"
            )
        if args.tower == "frozen":
            for _, parameter in tower_parameters(model):
                parameter.requires_grad_(False)
        return None
    trained_paths = [*backbone.projector_paths, *([backbone.tower_path] if args.tower == "full" else [])]
    mllm.requires_grad_(False)
    for name, parameter in mllm.named_parameters():
        trained = within(name, trained_paths)
        if parameter.is_floating_point():
            # float16 weights convert to float32 exactly, but not by way of bfloat16.
            parameter.data = parameter.data.to(torch.float32 if trained else dtype)
            parameter.requires_grad_(trained)
    if args.has_lora:
        names = _lora_layers(model, args)
        if not names:
            raise UserError(f"lora_targets {args.lora_targets}: matches no module of the model: correct it")
        settings = {"r": args.lora_rank, "lora_alpha": args.lora_alpha, "lora_dropout": args.lora_dropout}
        try:
            inject_adapter(mllm, {**settings, "target_modules": names})
        except (ImportError, ValueError) as error:
            raise UserError(f"lora_targets {args.lora_targets}: {' '.join(str(error).split())[:200]}") from error
        _check_lora_modules(mllm, _option_paths(backbone), args)
    return [f"mllm.{path}" for path in trained_paths]


def _option_paths(backbone: Backbone) -> dict[str, str]:
    """Returns the path of the module that each option trains."""
    return {"language_model": backbone.language_path, "tower": backbone.tower_path}


def _lora_layers(model: MllmReIDModel, args: AdapterArguments) -> list[str]:
    """Returns the names of the layers that get a LoRA: those of the user's expression, or all linear layers."""
    if args.lora_targets:
        # PEFT would match the expression itself, without a time limit.
        modules = (name for name, _ in model.mllm.named_modules())
        return [name for name in modules if matches(args.lora_targets, name, "lora_targets", whole=True)]
    paths = [path for option, path in _option_paths(model.backbone).items() if getattr(args, option) == "lora"]
    return [name for path in paths for name in linear_layers(model.mllm, model.backbone, path)]


def _check_lora_modules(mllm: nn.Module, paths: Mapping[str, str], args: AdapterArguments) -> None:
    """Raises UserError if the LoRA is on other modules than the options name."""
    names = [name for name, _ in mllm.named_parameters() if ".lora_" in name]
    modules = {option: path.rpartition(".")[2] for option, path in paths.items()}
    for option, module in modules.items():
        has_lora = any(within(name, [paths[option]]) for name in names)
        if has_lora != (getattr(args, option) == "lora"):
            raise UserError(
                f"lora_targets {args.lora_targets}: matches {'layers' if has_lora else 'no layer'} of the {module}, "
                f"and {option} is {getattr(args, option)}: correct one of them"
            )
    if outside := [name for name in names if not within(name, paths.values())]:
        raise UserError(
            f"lora_targets {args.lora_targets}: matches {outside[0].partition('.lora_')[0]}, which takes no LoRA: "
            f"match layers of {' and '.join(modules.values())} alone"
        )


def checkpoint_adapters(config: MllmReIDConfig, lora: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, Any]:
    """Returns the adapter settings of a thin checkpoint.

    Args:
        config (`MllmReIDConfig`): Configuration of the checkpoint.
        lora (`Mapping[str, Any]`, *optional*): Settings of its LoRA, under PEFT's names.
        names (`Iterable[str]`): Names of its LoRA weights.

    Returns:
        `dict[str, Any]`: Fields of [`AdapterArguments`] without `quantize`; LoRA fields are None without a LoRA.
    """
    names, paths = list(names), _option_paths(config.backbone_description)
    has_lora = {option: any(f"{path}." in name for name in names) for option, path in paths.items()}
    tower_in_full = f"mllm.{paths['tower']}" in (config.own_modules or ())
    settings: dict[str, Any] = {
        "language_model": "lora" if has_lora["language_model"] else "frozen",
        "tower": "full" if tower_in_full else "lora" if has_lora["tower"] else "frozen",
    }
    if lora is None:
        return {**settings, **dict.fromkeys(LORA_FIELDS)}
    dropout = lora.get("lora_dropout", 0.0)
    settings |= {"lora_rank": lora["r"], "lora_alpha": lora["lora_alpha"], "lora_dropout": dropout}
    return {**settings, "lora_targets": config.lora_targets}


def refuse_other_adapters(options: Mapping[str, Any], stored: Mapping[str, Any], checkpoint: str) -> None:
    """Raises UserError if an option differs from the adapter settings of a thin checkpoint.

    Args:
        options (`Mapping[str, Any]`): Fields of [`AdapterArguments`] that the user set.
        stored (`Mapping[str, Any]`): Settings of the checkpoint, from `checkpoint_adapters`.
        checkpoint (`str`): Name of the checkpoint, for the message.
    """
    for name, value in options.items():
        if name in stored and value != stored[name]:
            has = "has no LoRA" if stored[name] is None and name != "lora_targets" else f"has {stored[name] or 'none'}"
            raise UserError(
                f"{name} {value}: the thin checkpoint {checkpoint} {has}, and further training keeps that: leave it "
                "out, or train from a full checkpoint (mllmreid export --to full)"
            )


def prepare_training(
    model: MllmReIDModel, args: AdapterArguments, *, backbone: str, revision: str | None, dtype: torch.dtype
) -> None:
    """Applies the adapters, and makes checkpoints thin if the language model is not trained in full.

    Args:
        model (`MllmReIDModel`): The model around the loaded backbone, changed in place.
        args (`AdapterArguments`): What is trained.
        backbone (`str`): Name or folder of the backbone, stored in thin checkpoints.
        revision (`str`, *optional*): Commit of the backbone on the Hub.
        dtype (`torch.dtype`): Format of the frozen weights.

    Raises:
        UserError: As in `apply_adapters`.
    """
    own_modules = apply_adapters(model, args, dtype)
    if own_modules is None:
        return
    config = model.config
    config.backbone, config.backbone_revision = backbone, revision
    config.backbone_fingerprint = weights_fingerprint(model.mllm)
    config.own_modules, config.adapter = own_modules, ADAPTER if args.has_lora else None
    config.lora_targets = None if config.adapter is None else args.lora_targets
