"""Stock settings: refuses settings of `TrainingArguments` without effect here, and checks the others."""

import copy
import math
from argparse import SUPPRESS
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations.integration_utils import (
    get_reporting_integration_callbacks,
    is_tensorboard_available,
    is_trackio_available,
    is_wandb_available,
)
from transformers.trainer_pt_utils import AcceleratorConfig

from ..utils.errors import UserError
from ..utils.ranges import MOST_PROCESSES
from .kernels import check_kernels
from .setting_errors import setting_errors

Arguments = TypeVar("Arguments", bound=type[TrainingArguments])

# The reason why a setting is refused if it is not the stock default, and how to fix it.
NO_BATCH_LOSSES = "the evaluation measures retrieval, not losses of batches: leave it out"
PK_BATCHES = "batches are P x K for each process: set identities_per_batch and images_per_identity"
REFUSED = {
    "label_smoothing_factor": "it belongs to the stock loss, which is not used: set label_smoothing",
    "average_tokens_across_devices": "target tokens are always counted over all devices: leave it out",
    "bf16_full_eval": "evaluation has the number formats of training: set bf16, and dtype for frozen weights",
    "fp16_full_eval": "evaluation has the number formats of training: set bf16, and dtype for frozen weights",
    "liger_kernel_config": "use_liger_kernel chooses the kernels: leave it out",
    "use_cache": "training never caches keys and values: leave it out",
    "neftune_noise_alpha": "noise on the embeddings would differ between the passes over one batch: leave it out",
    "include_num_input_tokens_seen": "it would count pixels as tokens: leave it out",
    "prediction_loss_only": NO_BATCH_LOSSES,
    "eval_do_concat_batches": NO_BATCH_LOSSES,
    "eval_use_gather_object": NO_BATCH_LOSSES,
    "eval_accumulation_steps": NO_BATCH_LOSSES,
    "include_for_metrics": NO_BATCH_LOSSES,
    "batch_eval_metrics": NO_BATCH_LOSSES,
    "label_names": NO_BATCH_LOSSES,
    "save_on_each_node": "output_dir is on a disk that all nodes share: leave it out",
    "enable_jit_checkpoint": "SIGTERM always saves a checkpoint: leave it out",
    "hub_always_push": "each push waits for the previous one: leave it out",
    "greater_is_better": "higher is better for mAP, rank-k and mINP: leave it out",
    "data_seed": "one seed controls all random numbers: set seed",
    "accelerator_config": PK_BATCHES,
    "parallelism_config": "use DDP, FSDP or DeepSpeed: see configs/accelerate",
    "dataloader_drop_last": "every epoch is a whole number of batches already: leave it out",
    "dataloader_in_order": "a resumed run needs the batches in their order: leave it out",
    "remove_unused_columns": "the batches need those columns: leave it out",
    "train_sampling_strategy": PK_BATCHES,
    "length_column_name": PK_BATCHES,
    "do_train": "train always trains: leave it out",
    "do_eval": "set eval_strategy",
    "do_predict": "use the evaluate command: leave it out",
    "optim_target_modules": "set learning_rates, by regular expressions, or lora_targets",
}
# Parts of names of optimisers that build their own parameter groups, or step inside the backward pass.
REFUSED_OPTIMIZERS = ("galore", "apollo", "lomo", "layerwise")

# Minimum and maximum. Infinity itself is in no range.
POSITIVE, NOT_NEGATIVE, AT_LEAST_ONE = (math.ulp(0.0), math.inf), (0, math.inf), (1, math.inf)
RANGES = {
    "identities_per_batch": AT_LEAST_ONE,
    "images_per_identity": AT_LEAST_ONE,
    "pairs_per_batch": AT_LEAST_ONE,
    "similar_people": AT_LEAST_ONE,
    "diagnostics_steps": NOT_NEGATIVE,
    "grad_cache_chunk": NOT_NEGATIVE,
    "max_skipped_steps": NOT_NEGATIVE,
    "num_train_epochs": POSITIVE,
    "learning_rate": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": (0, 1 - 1e-12),
    "adam_beta2": (0, 1 - 1e-12),
    "adam_epsilon": NOT_NEGATIVE,
    "gradient_accumulation_steps": AT_LEAST_ONE,
    "max_grad_norm": NOT_NEGATIVE,
    "torch_empty_cache_steps": AT_LEAST_ONE,
    "logging_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "save_steps": POSITIVE,
    "eval_delay": NOT_NEGATIVE,
    "per_device_eval_batch_size": AT_LEAST_ONE,
    "save_total_limit": AT_LEAST_ONE,
    "seed": (0, 2**32 - 1),
    "dataloader_num_workers": (0, MOST_PROCESSES),
    "dataloader_prefetch_factor": AT_LEAST_ONE,
    "ddp_bucket_cap_mb": AT_LEAST_ONE,
    "ddp_timeout": AT_LEAST_ONE,
}
# Loggers of report_to: the check whether each is installed, and the command that installs it.
LOGGERS = {
    "tensorboard": (is_tensorboard_available, "pip install 'mllmreid[tensorboard]'"),
    "trackio": (is_trackio_available, "pip install trackio"),
    "wandb": (is_wandb_available, "pip install wandb"),
}
CHECKPOINTING_KWARGS = ("use_reentrant", "preserve_rng_state", "every_n_layers", "offload")
METRICS = ("mAP", "rank1", "rank5", "rank10", "mINP")


def without_refused(arguments: Arguments) -> Arguments:
    """Hides the refused settings from the help of an arguments class, and shows its ranges; returns the class."""
    types = {name: str(field.type) for name, field in arguments.__dataclass_fields__.items()}
    letters = {name: "N" if "int" in types[name] else "X" for name in RANGES}
    changes = {name: {"metavar": range_in_short(letters[name], *limits)} for name, limits in RANGES.items()}
    changes |= {name: {"help": SUPPRESS} for name in (*REFUSED, "per_device_train_batch_size")}
    for name, change in changes.items():
        # A copy, as the stock class shares the field.
        field = copy.copy(arguments.__dataclass_fields__[name])
        field.metadata = MappingProxyType({**field.metadata, **change})
        arguments.__dataclass_fields__[name] = field
    return arguments


def refuse_settings(args: TrainingArguments) -> None:
    """Raises UserError for a setting of `REFUSED` that is not the default, and for a number out of its range.

    Args:
        args (`TrainingArguments`): The values that the user set, before the stock class changes them.
    """
    for name, reason in REFUSED.items():
        value, default = getattr(args, name), args.__dataclass_fields__[name].default
        if name == "do_eval" and args.eval_strategy != "no":
            continue  # the stock class sets it, and a copy of the arguments keeps it
        if name == "accelerator_config" and value == AcceleratorConfig():
            continue
        if name == "greater_is_better" and value is True:
            continue
        if name == "include_num_input_tokens_seen" and value in (False, "no"):
            continue
        # A field with an empty list as default has no default value.
        if value != default and not (isinstance(value, list) and not value):
            raise UserError(f"{name} {value}: {reason}")
    for name, (least, most) in RANGES.items():
        check_number(name, getattr(args, name), least, most)
    if args.fsdp_config and not args.fsdp:
        raise UserError("fsdp_config: has no effect without fsdp: leave it out, or see configs/accelerate")
    check_number("max_steps", args.max_steps, -1, math.inf)
    if args.max_steps == 0:
        raise UserError("max_steps 0: give at least 1, or -1 for num_train_epochs")


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Raises UserError for a number outside [least, most], NaN or infinity; None passes."""
    if value is None:
        return
    if not isinstance(value, int | float) or not (least <= value <= most and math.isfinite(value)):
        if (least, most) == POSITIVE:
            expected = "a number above 0"
        elif most == math.inf:
            expected = f"{least} or more"
        else:
            expected = f"{least} to below 1" if most < 1 else f"{least} to {most}"
        raise UserError(f"{name} {value}: give {expected}")


def range_in_short(letter: str, least: float, most: float) -> str:
    """Returns a range of `RANGES` for `--help`; the letter is N for whole numbers and X for others."""
    if (least, most) == POSITIVE:
        return f"{letter}>0"
    return (
        f"{letter}>={least}" if most == math.inf else f"{least}<={letter}<{'=' if most > 1 else ''}{max(most, 1):,.0f}"
    )


def check_checkpointing(kwargs: Any) -> None:
    """Raises UserError for unknown keys of `activation_checkpointing_kwargs`."""
    if not kwargs:
        return
    unknown = sorted(set(kwargs) - set(CHECKPOINTING_KWARGS)) if isinstance(kwargs, dict) else [repr(kwargs)]
    if unknown:
        raise UserError(
            f"activation_checkpointing_kwargs: {unknown[0]} is unknown: "
            f"give JSON with {', '.join(CHECKPOINTING_KWARGS)}"
        )


def check_best_metric(name: str) -> None:
    """Raises UserError if the evaluation does not measure the metric."""
    feature, _, metric = name.removeprefix("eval_").rpartition("_")
    if metric not in METRICS or feature not in ("", "llm", "vision", "concat"):
        raise UserError(
            f"metric_for_best_model {name}: is not measured on val: give one of {', '.join(METRICS)}, or that of one "
            "feature, such as llm_mAP"
        )


def try_settings(args: TrainingArguments) -> None:
    """Builds the optimiser, the schedule and the loggers once, so that wrong settings fail before the training.

    Args:
        args (`TrainingArguments`): Training arguments.

    Raises:
        UserError: An unknown field, a value out of range, or a package that is not installed.
    """
    check_kernels(args)
    name = str(getattr(args.optim, "value", args.optim))
    if any(word in name for word in REFUSED_OPTIMIZERS):
        raise UserError(f"optim {name}: does not support learning_rates: give another optimiser")
    with setting_errors(f"optim {name} (optim_args {args.optim_args or 'none'})"):
        optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = optimizer_class([{"params": [torch.nn.Parameter(torch.zeros(1))]}], **settings)
    schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    with setting_errors(f"lr_scheduler_type {schedule} (lr_scheduler_kwargs {args.lr_scheduler_kwargs or 'none'})"):
        get_scheduler(
            schedule,
            optimizer=optimizer,
            num_warmup_steps=args.get_warmup_steps(100),
            num_training_steps=100,
            scheduler_specific_kwargs=dict(args.lr_scheduler_kwargs or {}),  # type: ignore[arg-type]
        )
    for name in args.report_to or ():
        if name in LOGGERS and not LOGGERS[name][0]():
            raise UserError(f"report_to {name}: {name} is not installed: {LOGGERS[name][1]}, or set report_to none")
        with setting_errors(f"report_to {name}"):
            for callback in get_reporting_integration_callbacks([name]):
                callback()
