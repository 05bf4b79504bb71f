"""What of a LLaVA is trained: the language model whole, by LoRA or not, quantised or not; the encoder likewise."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..errors import UserError
from ..model import MllmReIDModel
from ..model.adapters import ADAPTER, inject_adapter
from ..model.checkpoints import probe

TOWER, PROJECTOR = "mllm.model.vision_tower", "mllm.model.multi_modal_projector"
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

    @property
    def thin(self) -> bool:
        """Whether weights of the backbone stay as they are, so that checkpoints need not hold them."""
        return self.language_model != "full"

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
        settings = {"r": args.lora_rank, "lora_alpha": args.lora_alpha, "lora_dropout": args.lora_dropout}
        try:
            inject_adapter(mllm, {**settings, "target_modules": targets})
        except (ImportError, ValueError) as error:
            raise UserError(f"lora_targets {targets}: {' '.join(str(error).split())[:200]}") from error
    return own


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
    config.backbone, config.backbone_revision, config.backbone_probe = backbone, revision, probe(model.mllm)
    config.own_modules, config.adapter = own, None if args.target_modules() is None else ADAPTER
