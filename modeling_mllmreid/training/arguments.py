"""What training is told: how batches are made of the data, and how the model is optimised."""

import json
import math
from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config
from transformers.trainer_utils import HubStrategy

from ..utils.errors import UserError
from ..utils.processes import warn_idle_gpus
from .parameters import check_pattern
from .stock_settings import (
    LOGGERS,
    check_best_metric,
    check_checkpointing,
    refuse_settings,
    setting_errors,
    without_refused,
)


@dataclass
class BatchArguments:
    """How training batches are made: people, texts, augmentation."""

    texts: str | None = field(
        default=None, metadata={"help": "texts.jsonl with the continuations, written by the continuations command."}
    )
    target: Literal["continuation", "caption", "split"] = field(
        default="continuation",
        metadata={"help": "What the language model must write: the continuation, the caption, or its second part."},
    )
    text_branch: bool = field(default=True, metadata={"help": "Train on captions too, with the same targets."})
    max_target_tokens: int = field(default=32, metadata={"help": "Targets are cut to this many tokens."})
    instruction: Literal["common", "standard", "pool"] = field(
        default="common",
        metadata={"help": "The Common Instruction, a standard description prompt, or one of a pool for each image."},
    )
    val_identities: int = field(
        default=0,
        metadata={"help": "People taken out of the training part for model selection, where there is no val part."},
    )
    flip: float = field(default=0.5, metadata={"help": "Probability of mirroring a crop."})
    pad: int = field(default=10, metadata={"help": "Pixels that a crop is shifted by at most."})
    erase: float = field(default=0.5, metadata={"help": "Probability of erasing a rectangle."})

    def __post_init__(self) -> None:
        for name in ("flip", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: give a probability, 0 to 1")
        for name, least in (("max_target_tokens", 1), ("val_identities", 0), ("pad", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} {getattr(self, name)}: give {least} or more")


@without_refused
@dataclass
class ReIDTrainingArguments(TrainingArguments):
    """`TrainingArguments` with P x K batches, learning rates by module, and defaults that fit re-identification.

    One batch on a device is `identities_per_batch` people with `images_per_identity` images each; one process has one
    device. Raises UserError for a value that is out of range, and for what has no effect here or another one, see
    `stock_settings`.
    """

    identities_per_batch: int = field(default=16, metadata={"help": "P: people in a batch."})
    images_per_identity: int = field(default=4, metadata={"help": "K: images of each person in a batch."})
    balance_sets: bool = field(
        default=False, metadata={"help": "Of several training sets, as many people of each in every pass."}
    )
    learning_rates: dict[str, float] | str | None = field(
        default=None,
        metadata={"help": "Learning rates by regular expression on parameter names (JSON); the first match counts."},
    )
    diagnostics_steps: int = field(
        default=500,
        metadata={"help": "Log gradients at the visual encoder, spread and texts every so many steps; 0: never."},
    )
    grad_cache_chunk: int = field(
        default=0,
        metadata={
            "help": "Images computed at once: the batch's gradient in the memory of so many, for one more pass; 0: all."
        },
    )
    max_skipped_steps: int = field(
        default=3,
        metadata={"help": "Steps in a row that are skipped, as their loss or gradient is not finite, before the end."},
    )
    # What follows replaces the stock defaults.
    per_device_train_batch_size: int = field(default=0, metadata={"help": "P x K: what is given must be that."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate on val: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint: no, steps, epoch, best."})
    save_total_limit: int | None = field(default=2, metadata={"help": "How many checkpoints to keep."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "Keep the checkpoint that is best on val."})
    metric_for_best_model: str | None = field(default="mAP", metadata={"help": "What best means: mAP, rank1, mINP."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: batches are made here."})
    report_to: str | list[str] = field(
        default="none", metadata={"help": "Where to log too: none, tensorboard, wandb, trackio, all."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Left out: the last checkpoint in output_dir, where it is this run's; true: it, whatever its run "
            "was told; false: none; or a checkpoint's folder."
        },
    )
    auto_find_batch_size: bool = field(
        default=False, metadata={"help": "Take the largest identities_per_batch that fits, at most the given one."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: what no loss reaches is frozen before the training."}
    )
    # A step that is not finite is found without asking the device for every micro-batch.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Not needed: see max_skipped_steps."})
    hub_private_repo: bool | None = field(default=True, metadata={"help": "Make a new repository on the Hub private."})

    def __post_init__(self) -> None:
        refuse_settings(self)
        if not self.output_dir:
            raise UserError("output_dir is empty: give the folder that the model is written to")
        size = self.identities_per_batch * self.images_per_identity
        if self.per_device_train_batch_size not in (0, size):
            raise UserError(
                f"per_device_train_batch_size {self.per_device_train_batch_size}: a batch is P x K: set "
                f"identities_per_batch ({self.identities_per_batch}) and images_per_identity "
                f"({self.images_per_identity})"
            )
        self.per_device_train_batch_size = size
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False
        if self.load_best_model_at_end or self.save_strategy == "best":
            check_best_metric(str(self.metric_for_best_model))
        self.learning_rates = _learning_rates(self.learning_rates)
        every_logger = self.report_to in ("all", ["all"])
        with setting_errors("training arguments"):
            super().__post_init__()
            warn_idle_gpus(self.distributed_state)
        if every_logger and not self.report_to:
            raise UserError(
                f"report_to all: no logger is installed: {LOGGERS['tensorboard'][1]}, or set report_to none"
            )
        check_checkpointing(self.activation_checkpointing_kwargs)
        # Under ZeRO-3 the LLaVA would be taken apart while it is loaded, before it has heads or a LoRA.
        unset_hf_deepspeed_config()
        if self.push_to_hub and self.hub_strategy in ("checkpoint", "all_checkpoints"):
            raise UserError(
                f"hub_strategy {HubStrategy(self.hub_strategy).value}: would publish optimiser states, which are "
                "pickles: use every_save or end"
            )

    @property
    def n_gpu(self) -> int:
        """At most one: with several in one process the Trainer would split P x K batches between them."""
        return min(1, super().n_gpu)

    def to_public_dict(self) -> dict[str, Any]:
        """All settings as JSON can hold them, without tokens and without this machine's paths for logs."""
        return {name: value for name, value in self.to_dict().items() if not name.endswith("token")}


def _learning_rates(value: dict[str, float] | str | None) -> dict[str, float]:
    """Checked learning rates by pattern. Raises UserError naming the entry."""
    try:
        rates = json.loads(value) if isinstance(value, str) else dict(value or {})
        rates = {pattern: float(rate) for pattern, rate in rates.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"learning_rates {value!r}: not a JSON object of pattern to number ({error}): correct it"
        ) from None
    for pattern, rate in rates.items():
        check_pattern(pattern, "learning_rates")
        if not 0 <= rate < math.inf:
            raise UserError(f"learning_rates: {pattern!r} has rate {rate}: give 0 or more")
    return rates
