"""The training arguments: P x K batches, and how the model is optimised."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_utils import HubStrategy
from transformers.utils import is_torch_bf16_gpu_available, is_torch_xla_available

from ..utils.errors import UserError
from ..utils.processes import warn_idle_gpus, warn_slow_bfloat16
from .parameters import check_pattern
from .setting_errors import setting_errors
from .stock_settings import (
    LOGGERS,
    check_best_metric,
    check_checkpointing,
    refuse_settings,
    without_refused,
)


@without_refused
@dataclass
class ReIDTrainingArguments(TrainingArguments):
    """The training: P x K batches, learning rates by module, and the fields of `TrainingArguments`.

    A batch on a device has `identities_per_batch` people (P) with `images_per_identity` images each (K). A process uses
    one device.

    Args:
        output_dir (`str`): Folder that the model and its checkpoints are written to.
        identities_per_batch (`int`): People in a batch of one device, P.
        images_per_identity (`int`): Images of each person in a batch, K.
        pairs_per_batch (`int`, *optional*): Images with captions in a batch of one device, shuffled without regard to
            people. For the language loss alone, in place of P x K.
        balance_sets (`bool`): Whether every epoch draws the same number of people from each training set.
        similar_people (`int`): People of a batch come in groups of this many whom the model at the start of the run
            finds similar, for hard negatives; a divisor of P. 1 draws any people.
        learning_rates (`dict[str, float]` or JSON, *optional*): Learning rate for each regular expression on parameter
            names. The first match counts; other parameters use `learning_rate`.
        reid_warmup_steps (`int`): Steps over which the weight of the ReID losses rises from 0 to `loss_lambda`.
        diagnostics_steps (`int`): Steps between two diagnostics; 0 turns them off.
        grad_cache_chunk (`int`): Images computed at a time with cached gradients; 0 computes the whole batch at once.
        fused_lora (`bool`): Whether a LoRA is computed by one function instead of PEFT's operations. With ZeRO-3 it is
            computed by PEFT.
        attn_implementation (`str`, *optional*): Attention of the whole model, such as "eager" or "flash_attention_2".
            By default that which transformers chooses, mostly "sdpa".
        max_skipped_steps (`int`): Steps in a row that may be skipped because a loss or gradient is not finite.
        **kwargs: The other fields are those of `transformers.TrainingArguments`, with the defaults below.

    Raises:
        UserError: A value is out of range, or a stock setting has no effect here (see `stock_settings.REFUSED`).

    Example:
        >>> from modeling_mllmreid import ReIDTrainingArguments
        >>> args = ReIDTrainingArguments(output_dir="model", identities_per_batch=8, images_per_identity=4)
        >>> args.per_device_train_batch_size
        32
    """

    identities_per_batch: int = field(default=16, metadata={"help": "Number of people in a batch of one device (P)."})
    images_per_identity: int = field(default=4, metadata={"help": "Number of images of each person in a batch (K)."})
    pairs_per_batch: int | None = field(
        default=None,
        metadata={"help": "Images with captions in a batch, shuffled in place of P x K; needs loss_lambda 0."},
    )
    balance_sets: bool = field(
        default=False, metadata={"help": "Draw the same number of people from each training set in every epoch."}
    )
    similar_people: int = field(
        default=1,
        metadata={
            "help": "People of a batch come in groups of this many who look alike to the model at the start; 1: any."
        },
    )
    learning_rates: dict[str, float] | str | None = field(
        default=None,
        metadata={"help": "Learning rates by regular expression on parameter names (JSON). The first match counts."},
    )
    reid_warmup_steps: int = field(
        default=0,
        metadata={"metavar": "N>=0", "help": "Steps over which the weight of the ReID losses rises from 0."},
    )
    diagnostics_steps: int = field(
        default=500,
        metadata={"help": "Log diagnostics (gradients, feature spread, texts) every this many steps. 0: never."},
    )
    grad_cache_chunk: int = field(
        default=0,
        metadata={
            "help": "Cached gradients: images computed at a time, for one more forward pass. 0: the whole batch."
        },
    )
    fused_lora: bool = field(
        default=True, metadata={"help": "Compute a LoRA by one function with a gradient by hand; false: as PEFT does."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "Attention: eager (faster for small crops on a CPU), sdpa, flash_attention_2, or another."},
    )
    max_skipped_steps: int = field(
        default=3,
        metadata={"help": "Stop after more than this many steps in a row with a loss or gradient that is not finite."},
    )
    # The fields below replace stock defaults.
    per_device_train_batch_size: int = field(default=0, metadata={"help": "Computed: P x K."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate on val: no, steps or epoch."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to save a checkpoint: no, steps, epoch or best."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Log the losses every this many steps."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Number of checkpoints to keep."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Load the checkpoint that is best on val when training ends."}
    )
    metric_for_best_model: str | None = field(
        default="mAP", metadata={"help": "Metric on val that selects the best checkpoint: mAP, rank1 or mINP."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay false: the batches need these columns."}
    )
    report_to: str | list[str] = field(
        default="none", metadata={"help": "Additional loggers: none, tensorboard, wandb, trackio or all."}
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "Checkpoint to continue from: true, false or a folder. Default: the last one in output_dir if it "
            "has the same settings. true: the last one with any settings. false: start again."
        },
    )
    auto_find_batch_size: bool = field(
        default=False, metadata={"help": "Lower identities_per_batch to the largest value that fits into memory."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Not needed: parameters that no loss reaches are frozen before training."}
    )
    dataloader_pin_memory: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Load batches into pinned memory. Default: with a GPU."}
    )
    dataloader_persistent_workers: bool | None = field(  # type: ignore[assignment]
        default=None,
        metadata={"help": "Keep the loading processes from epoch to epoch. Default: with dataloader_num_workers."},
    )
    use_liger_kernel: bool = field(
        default=False,
        metadata={"help": "Compute norms and MLPs of the language model by liger-kernel, not its rotary embedding."},
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the decoder layers of the language model, in training alone."}
    )
    # The step guard finds losses that are not finite with one device synchronisation a step.
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Not needed: see max_skipped_steps."})
    hub_private_repo: bool | None = field(default=True, metadata={"help": "Make a new Hub repository private."})

    def __post_init__(self) -> None:
        refuse_settings(self)
        if not self.output_dir:
            raise UserError("output_dir is empty: give the folder that the model is written to")
        batch_size = self.pairs_per_batch or self.identities_per_batch * self.images_per_identity
        if self.pairs_per_batch is not None:
            self._check_pairs()
        if self.per_device_train_batch_size not in (0, batch_size):
            raise UserError(
                f"per_device_train_batch_size {self.per_device_train_batch_size}: a batch is P x K: set "
                f"identities_per_batch ({self.identities_per_batch}) and images_per_identity "
                f"({self.images_per_identity}), or pairs_per_batch"
            )
        self.per_device_train_batch_size = batch_size
        if self.eval_strategy == "no":
            self.load_best_model_at_end = False
        if self.load_best_model_at_end or self.save_strategy == "best":
            check_best_metric(str(self.metric_for_best_model))
        if self.reid_warmup_steps < 0:
            raise UserError(f"reid_warmup_steps {self.reid_warmup_steps}: give 0 or more")
        self.learning_rates = _checked_learning_rates(self.learning_rates)
        if self.dataloader_persistent_workers and not self.dataloader_num_workers:
            raise UserError(
                "dataloader_persistent_workers: has no effect without loading processes: set dataloader_num_workers"
            )
        if self.dataloader_persistent_workers is None:
            self.dataloader_persistent_workers = self.dataloader_num_workers > 0
        all_loggers = self.report_to in ("all", ["all"])
        supported = self.use_cpu or is_torch_bf16_gpu_available() or is_torch_xla_available()
        if (self.bf16 or self.bf16_full_eval) and not supported:
            raise UserError("bf16: no GPU of this machine computes in bfloat16: add --use_cpu true to train on the CPU")
        with setting_errors("training arguments"):
            super().__post_init__()
            if self.dataloader_pin_memory is None:
                self.dataloader_pin_memory = self.device.type == "cuda"
            warn_idle_gpus(self.distributed_state)
        if self.bf16:
            warn_slow_bfloat16(self.device, "bf16 false, and dtype float32")
        if all_loggers and not self.report_to:
            raise UserError(
                f"report_to all: no logger is installed: {LOGGERS['tensorboard'][1]}, or set report_to none"
            )
        check_checkpointing(self.activation_checkpointing_kwargs)
        # Otherwise ZeRO-3 shards the model during loading, before it has heads or a LoRA.
        unset_hf_deepspeed_config()
        if self.push_to_hub and self.hub_strategy in ("checkpoint", "all_checkpoints"):
            raise UserError(
                f"hub_strategy {HubStrategy(self.hub_strategy).value}: publishes optimiser states, which are "
                "pickles: use every_save or end"
            )

    def _check_pairs(self) -> None:
        """Raises UserError for settings that need people in batches of pairs."""
        for name in ("balance_sets", "auto_find_batch_size"):
            if getattr(self, name):
                raise UserError(f"{name}: is for batches of P x K: leave it out, or leave pairs_per_batch out")

    @property
    def batch_in_words(self) -> str:
        """The number of images of a batch: "16 x 4" for P x K, or "64"."""
        return str(self.pairs_per_batch or f"{self.identities_per_batch} x {self.images_per_identity}")

    @property
    def n_gpu(self) -> int:
        """At most 1: with several GPUs in one process the Trainer would split P x K batches between them."""
        return min(1, int(super().n_gpu))

    def to_public_dict(self) -> dict[str, Any]:
        """Returns all settings as values that JSON can hold, without tokens."""
        return {name: value for name, value in self.to_dict().items() if not name.endswith("token")}


def _checked_learning_rates(value: dict[str, float] | str | None) -> dict[str, float]:
    """Returns the learning rates by pattern. Raises UserError that names a wrong entry."""
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
