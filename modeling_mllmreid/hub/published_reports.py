"""The reports of a run as they are published: numbers and settings; no names of people or files, no local paths."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.threshold import THRESHOLD_FILE
from ..formats import MetricsFile, RunFile, ThresholdsFile, TrainerStateFile, TrainingArgsFile, parse_json
from ..model.local_paths import is_local, last_name

REPORTS = ("metrics.json", "run.json", "training_args.json", "trainer_state.json", THRESHOLD_FILE)
# fmt: off
METRICS_FIELDS = (
    "weights", "trained_on", "tested_on", "published_counts", "overlap", "query_images", "gallery_images", "height",
    "width", "dtype", "quantize", "flip_test", "exclude", "pool_tracks", "test_feature", "metrics", "intervals",
    "single_shot_cmc", "verification", "open_set",
)
RUN_FIELDS = (
    "weights", "measured_on", "base_model", "data", "sources", "published_counts", "texts", "adapters", "batches",
    "hardware", "environment", "seconds",
)
# Of a text's provenance.
TEXT_FIELDS = (
    "model", "revision", "licence", "prompts", "instruction", "prompt", "max_new_tokens", "do_sample", "temperature",
    "seed",
)
ARGUMENT_FIELDS = (
    "learning_rate", "learning_rates", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim",
    "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "num_train_epochs",
    "max_steps", "gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
    "identities_per_batch", "images_per_identity", "grad_cache_chunk", "bf16", "fp16", "tf32", "seed", "data_seed",
    "full_determinism", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_strategy",
    "eval_steps", "save_strategy", "save_steps", "logging_steps", "activation_checkpointing",
    "gradient_checkpointing", "torch_compile",
)
# fmt: on


def published_report(name: str, content: bytes, *, where: str) -> Any:
    """A report (one of `REPORTS`) as it is published: numbers and settings, no names of people or files, no paths.

    What is not finite, such as the gradient's norm in a step that was skipped, is null: JSON has no word for it. Raises
    UserError for a report that is not what its name says.
    """
    return _finite(_published(name, content, where))


def _published(name: str, content: bytes, where: str) -> Any:
    if name == "trainer_state.json":
        log = parse_json(content, TrainerStateFile, where=where).log_history
        return {"log_history": [_only_numbers(entry) for entry in log]}
    if name == "training_args.json":
        return _chosen(parse_json(content, TrainingArgsFile, where=where).model_dump(), ARGUMENT_FIELDS)
    if name == THRESHOLD_FILE:
        thresholds = parse_json(content, ThresholdsFile, where=where)
        return {feature: _only_numbers(values.model_dump()) | {"metric": values.metric}
                for feature, values in thresholds.items()}  # fmt: skip
    if name == "run.json":
        run = _chosen(parse_json(content, RunFile, where=where).model_dump(exclude_unset=True), RUN_FIELDS)
        texts = [_chosen(text, TEXT_FIELDS) for text in run.get("texts") or []]
        for part in (run, *texts):
            for key in ("base_model", "model"):
                if is_local(str(part.get(key) or "")):
                    part[key] = last_name(str(part[key]))
        if texts:
            run["texts"] = texts
        if run.get("batches"):
            run["batches"] = {key: value for key, value in run["batches"].items() if key != "texts"}
        return run
    # Of other commands, or over several splits: nothing that a card shows.
    loose = parse_json(content, dict[str, Any], where=where)
    if "weights" not in loose or "metrics" not in loose:
        return None
    report = _chosen(parse_json(content, MetricsFile, where=where).model_dump(exclude_unset=True), METRICS_FIELDS)
    report |= {key: _only_numbers(report[key]) for key in ("single_shot_cmc", "verification", "open_set")
               if key in report}  # fmt: skip
    return {"model": "", "dataset": "+".join(report["tested_on"]), **report}


def _finite(value: Any) -> Any:
    """A nested content with None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _chosen(content: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {field: content[field] for field in fields if content.get(field) is not None}


def _only_numbers(value: Any) -> Any:
    """Of a nested content the numbers, under their names."""
    if isinstance(value, Mapping):
        return {key: _only_numbers(item) for key, item in value.items() if not isinstance(item, str)}
    return [_only_numbers(item) for item in value if not isinstance(item, str)] if isinstance(value, list) else value
