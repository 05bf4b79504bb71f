"""What of a LLaVA is trained: the language model whole, by LoRA or not, quantised or not; the encoder likewise."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from ..model import MllmReIDConfig, MllmReIDModel
from ..model.adapters import ADAPTER, inject_adapter
from ..model.backbone_loading import weights_fingerprint
from ..utils.errors import UserError
from .parameters import check_pattern, matches

TOWER, PROJECTOR = "mllm.model.vision_tower", "mllm.model.multi_modal_projector"
# What each option is of, as module names have it.
PARTS = {"language_model": "language_model", "tower": "vision_tower"}
LORA_FIELDS = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")
# Names inside the LLaVA. A bare "q_proj" would hit the visual encoder's attention as well.
LANGUAGE_TARGETS = r".*language_model\.layers\.\d+\..*\.(q|k|v|o|gate|up|down)_proj"
TOWER_TARGETS = r".*vision_tower\..*layers\.\d+\..*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


@dataclass
class AdapterArguments:
    """Which weights are trained, and how the frozen ones are held. Projector and heads are always trained."""

    language_model: Literal["full", "lora", "frozen"] = field(
        default="full", metadata={"help": "Train the language model whole, by LoRA, or not at all."}
    )
    tower: Literal["full", "lora", "frozen"] = field(
        default="full", metadata={"help": "Train the visual encoder whole, by LoRA, or not at all."}
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the LoRA."})
    lora_alpha: float = field(default=32, metadata={"help": "The LoRA's product is scaled by lora_alpha / lora_rank."})
    lora_dropout: float = field(default=0.05, metadata={"help": "Dropout on the LoRA's input."})
    lora_targets: str | None = field(
        default=None,
        metadata={"help": "Regular expression on full names inside the LLaVA, in place of all linear layers."},
    )
    quantize: Literal["4bit", "8bit"] | None = field(
        default=None, metadata={"help": "Hold the frozen language model in 4 bits (nf4, double) or 8, by bitsandbytes."}
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
        """Whether weights of the backbone stay as they are, so that checkpoints need not hold them."""
        return self.language_model != "full"

    @property
    def has_lora(self) -> bool:
        """Whether anything is trained by LoRA."""
        return "lora" in (self.language_model, self.tower)

    def to_record(self) -> dict[str, Any]:
        """What was done, for run.json: settings of a LoRA only where there is one."""
        return {name: value for name, value in asdict(self).items() if self.has_lora or name not in LORA_FIELDS}

    def target_modules(self) -> str | None:
        """The LoRA's regular expression, or None without a LoRA."""
        parts = {LANGUAGE_TARGETS: self.language_model, TOWER_TARGETS: self.tower}
        patterns = [pattern for pattern, mode in parts.items() if mode == "lora"]
        return (self.lora_targets or "|".join(patterns)) if patterns else None

    def quantization_config(self, dtype: torch.dtype) -> Any:
        """The language model's `BitsAndBytesConfig`, computing in `dtype`, or None; UserError without the package."""
        from transformers import BitsAndBytesConfig
        from transformers.utils import is_bitsandbytes_available

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
    """Freezes and adds the LoRA; returns the modules that are trained whole, or None where all of them may be.

    dtype: of the frozen weights; what is trained is float32. Unlike peft's k-bit preparation nothing frozen is turned
    to float32. Raises UserError where nothing matches `lora_targets`, where peft is missing, and for a LoRA that would
    save nothing.
    """
    targets, mllm = args.target_modules(), model.mllm
    if not args.thin:
        # Checkpoints hold every weight then, and a LoRA would save nothing.
        if targets is not None:
            raise UserError(
                "tower is lora, language_model full: set language_model to lora or frozen, or tower to full"
            )
        if args.tower == "frozen":
            model.get_submodule(TOWER).requires_grad_(False)
        return None
    own = [PROJECTOR] + ([TOWER] if args.tower == "full" else [])
    mllm.requires_grad_(False)
    for name, parameter in mllm.named_parameters():
        trained = f"mllm.{name}".startswith(tuple(f"{module}." for module in own))
        if parameter.is_floating_point():
            # What was stored in float16 is exact in float32, and would not be by way of bfloat16.
            parameter.data = parameter.data.to(torch.float32 if trained else dtype)
            parameter.requires_grad_(trained)
    if targets is not None:
        # PEFT would match the expression itself, however long that takes.
        names = [name for name, _ in mllm.named_modules() if matches(targets, name, "lora_targets", whole=True)]
        if not names:
            raise UserError(f"lora_targets {targets}: matches no module of the model: correct it")
        settings = {"r": args.lora_rank, "lora_alpha": args.lora_alpha, "lora_dropout": args.lora_dropout}
        try:
            inject_adapter(mllm, {**settings, "target_modules": names})
        except (ImportError, ValueError) as error:
            raise UserError(f"lora_targets {targets}: {' '.join(str(error).split())[:200]}") from error
        _check_targets(mllm, args)
    return own


def _check_targets(mllm: nn.Module, args: AdapterArguments) -> None:
    """Raises UserError where the LoRA is not on the parts that are to be trained by it, and on no other."""
    names = [name for name, _ in mllm.named_parameters() if ".lora_" in name]
    for option, part in PARTS.items():
        wanted, found = getattr(args, option) == "lora", any(f"{part}." in name for name in names)
        if wanted != found:
            raise UserError(
                f"lora_targets {args.lora_targets}: matches {'something' if found else 'nothing'} of the {part}, and "
                f"{option} is {getattr(args, option)}: correct one of them"
            )
    if outside := [name for name in names if not any(f"{part}." in name for part in PARTS.values())]:
        raise UserError(
            f"lora_targets {args.lora_targets}: matches {outside[0].partition('.lora_')[0]}, which is trained whole or "
            f"not at all: match layers of {' and '.join(PARTS.values())} alone"
        )


def adapters_of_checkpoint(
    config: MllmReIDConfig, lora: Mapping[str, Any] | None, names: Iterable[str]
) -> dict[str, Any]:
    """What a thin checkpoint was trained with, as fields of [`AdapterArguments`] without `quantize`.

    lora: its LoRA's settings, as PEFT names them; None without one. names: of its LoRA's weights. Settings of a LoRA
    are None where there is none.
    """
    names = list(names)
    by_lora = {option: any(f"{part}." in name for name in names) for option, part in PARTS.items()}
    tower_whole = TOWER in (config.own_modules or ())
    found: dict[str, Any] = {
        "language_model": "lora" if by_lora["language_model"] else "frozen",
        "tower": "full" if tower_whole else "lora" if by_lora["tower"] else "frozen",
    }
    if lora is None:
        return {**found, **dict.fromkeys(LORA_FIELDS)}
    found |= {"lora_rank": lora["r"], "lora_alpha": lora["lora_alpha"], "lora_dropout": lora.get("lora_dropout", 0.0)}
    return {**found, "lora_targets": config.lora_targets}


def refuse_other_adapters(given: Mapping[str, Any], stored: Mapping[str, Any], checkpoint: str) -> None:
    """Raises UserError for a setting that the thin checkpoint, whose training goes on, was not made with.

    given: fields of [`AdapterArguments`]. stored: from `adapters_of_checkpoint`.
    """
    for name, value in given.items():
        if name in stored and value != stored[name]:
            has = "has no LoRA" if stored[name] is None and name != "lora_targets" else f"has {stored[name] or 'none'}"
            raise UserError(
                f"{name} {value}: the thin checkpoint {checkpoint} {has}, which its training keeps: leave it out, or "
                "train on from a full one (run_reid.py export --to full)"
            )


def prepare_training(
    model: MllmReIDModel, args: AdapterArguments, *, backbone: str, revision: str | None, dtype: torch.dtype
) -> None:
    """`apply_adapters`, and checkpoints become thin where the language model is not trained whole.

    model: around the backbone, as it was loaded. backbone, revision: what thin checkpoints name.
    """
    own = apply_adapters(model, args, dtype)
    if own is None:
        return
    config = model.config
    config.backbone, config.backbone_revision = backbone, revision
    config.backbone_fingerprint = weights_fingerprint(model.mllm)
    config.own_modules, config.adapter = own, None if args.target_modules() is None else ADAPTER
    config.lora_targets = None if config.adapter is None else args.lora_targets
