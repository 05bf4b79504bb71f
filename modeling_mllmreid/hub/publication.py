"""Chooses what an export publishes: the files of its form, and reports without names or local paths."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME as INDEX
from transformers.utils import SAFE_WEIGHTS_NAME as FULL_WEIGHTS

from ..evaluation.threshold import THRESHOLD_FILE
from ..model.adapters import ADAPTER, SETTINGS, WEIGHTS
from ..model.pipeline_mllmreid import MODULES, modules_entry
from ..model.publishing import VERBATIM, is_local, last_name, without_local_paths
from ..utils.checkpoint_formats import ExportConfigFile, TrainerStateFile, TrainingArgsFile, WeightIndexFile
from ..utils.errors import UserError
from ..utils.json_files import parse_json, read_json
from ..utils.outputs import is_ours
from ..utils.report_formats import MetricsFile, RunFile, ThresholdsFile

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
# Fields of a generated text's provenance.
TEXT_FIELDS = (
    "model", "revision", "licence", "prompts", "instruction", "prompt", "max_new_tokens", "do_sample", "temperature",
    "seed", "end_of_text",
)
ARGUMENT_FIELDS = (
    "learning_rate", "learning_rates", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim",
    "optim_args", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "num_train_epochs",
    "max_steps", "gradient_accumulation_steps", "per_device_train_batch_size", "per_device_eval_batch_size",
    "identities_per_batch", "images_per_identity", "pairs_per_batch", "grad_cache_chunk", "bf16", "fp16", "tf32",
    "seed", "data_seed",
    "full_determinism", "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "eval_strategy",
    "eval_steps", "save_strategy", "save_steps", "logging_steps", "activation_checkpointing",
    "gradient_checkpointing", "torch_compile",
)
# fmt: on

CODE = tuple(sorted(path.name for path in (Path(__file__).parents[1] / "model").glob("[!_]*.py")))
CONFIGS = ("config.json", "generation_config.json", MODULES)
PROCESSOR = ("processor_config.json", "preprocessor_config.json", "chat_template.jinja", "chat_template.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "spiece.model")
VOCABULARY = ("added_tokens.json", "vocab.json", "vocab.txt", "merges.txt")
CARD, LOSS_PICTURE = "README.md", "loss.png"
TEXTS = (CARD, "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE")
ONNX = ("model.onnx", "model.onnx.data")
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
LARGEST = 50 * 10**9  # the Hub's limit for one file, in bytes

CLASSIFIER = re.compile(r"(^|\.)classifier(\.|$)")


def published_report(name: str, content: bytes, *, where: str) -> Any:
    """Returns the published content of a report: numbers and settings, without names of people or files and paths.

    Numbers that are not finite become None, since JSON cannot hold them. An example is the gradient norm of a step
    that was skipped.

    Args:
        name (`str`):
            File name, one of `REPORTS`.
        content (`bytes`):
            The file's content.
        where (`str`):
            The file's path, for errors.

    Returns:
        The content, or None for a metrics.json that no card shows.

    Raises:
        UserError: for an invalid report.
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
        for origin in (run, *texts):
            for key in ("base_model", "model"):
                if is_local(str(origin.get(key) or "")):
                    origin[key] = last_name(str(origin[key]))
        if texts:
            run["texts"] = texts
        if run.get("batches"):
            run["batches"] = {key: value for key, value in run["batches"].items() if key != "texts"}
        return run
    # Metrics of other commands and metrics over several splits are not on a card.
    fields = parse_json(content, dict[str, Any], where=where)
    if "weights" not in fields or "metrics" not in fields:
        return None
    report = _chosen(parse_json(content, MetricsFile, where=where).model_dump(exclude_unset=True), METRICS_FIELDS)
    report |= {key: _only_numbers(report[key]) for key in ("single_shot_cmc", "verification", "open_set")
               if key in report}  # fmt: skip
    return {"model": "", "dataset": "+".join(report["tested_on"]), **report}


def _finite(value: Any) -> Any:
    """Returns nested content with None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _chosen(content: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    return {field: content[field] for field in fields if content.get(field) is not None}


def _only_numbers(value: Any) -> Any:
    """Returns the numbers of nested content, under their names."""
    if isinstance(value, Mapping):
        return {key: _only_numbers(item) for key, item in value.items() if not isinstance(item, str)}
    return [_only_numbers(item) for item in value if not isinstance(item, str)] if isinstance(value, list) else value


# ---- the files of a form -------------------------------------------------------------------------------------------


def weight_files(folder: Path) -> list[str]:
    """Returns the names of a checkpoint's weight files, without its adapter. Raises UserError for an invalid index."""
    if not (folder / INDEX).is_file():
        return [FULL_WEIGHTS] if (folder / FULL_WEIGHTS).is_file() else []
    names = sorted(set(read_json(folder / INDEX, WeightIndexFile).weight_map.values()))
    for name in names:
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise UserError(f"{folder / INDEX}: names {name!r}, no .safetensors file in its folder: export it again")
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing, which {INDEX} names: export it again")
    return [INDEX, *names]


def form_files(folder: Path) -> list[str]:
    """Returns the files of a folder that belong to a published form, sorted. Other files are not published."""
    adapter = (f"{ADAPTER}/{SETTINGS}", f"{ADAPTER}/{WEIGHTS}")
    by_name = (*CONFIGS, *PROCESSOR, *TOKENIZER, *VOCABULARY, *TEXTS, *REPORTS, *ONNX, *CODE, LOSS_PICTURE, *adapter)
    return sorted({*weight_files(folder), *(name for name in by_name if (folder / name).is_file())})


def publication(folder: Path) -> dict[str, Path | bytes]:
    """Collects the content to publish; JSON files are cleaned of this machine's paths. The folder does not change.

    Args:
        folder (`Path`):
            The export's folder.

    Returns:
        `dict[str, Path | bytes]`: by file name, the file's path or its cleaned content.

    Raises:
        UserError: for an invalid report or JSON file.
    """
    content: dict[str, Path | bytes] = {}
    for name in form_files(folder):
        path = folder / name
        if name.endswith(".json") and name not in VERBATIM:
            cleaned = published_json(name, path.read_bytes(), where=str(path))
            if cleaned is not None:
                content[name] = cleaned
        else:
            content[name] = path
    return content


def published_json(name: str, content: bytes, *, where: str) -> bytes | None:
    """Returns the published content of a JSON file, or None if the file is not published."""
    if name == MODULES:
        # It names code that others run.
        return modules_entry().encode()
    if name in REPORTS:
        value = published_report(name, content, where=where)
        if value is None:
            return None
    else:
        value = parse_json(content, dict[str, Any], where=where)
        if value == without_local_paths(value):
            return content
    return (json.dumps(without_local_paths(value), indent=2, ensure_ascii=False) + "\n").encode()


# ---- checks --------------------------------------------------------------------------------------------------------


def check_publishable(folder: Path) -> None:
    """Checks that a folder is an export that others can load and that holds no templates of people.

    Configuration, code, processor, card and weights must be files of the folder, and not empty. There must be no pickle
    and no ID classifier, and others must have access to the backbone.

    Args:
        folder (`Path`):
            The export's folder.

    Raises:
        UserError: for the first problem.
    """
    again = "make it with mllmreid export"
    if not (folder / "config.json").is_file():
        raise UserError(f"push {folder}: config.json cannot be read: give the folder of an export")
    config = read_json(folder / "config.json", ExportConfigFile, remedy="give the folder of an export")
    code = {entry.split(".")[0] for entry in config.auto_map.values() if isinstance(entry, str)}
    needed = [CARD, "processor_config.json", *(f"{name}.py" for name in sorted(code))]
    missing = [name for name in needed if not (folder / name).is_file()]
    if missing or not code:
        raise UserError(f"push {folder}: has no {(missing or ['code'])[0]}: {again}")
    if not weight_files(folder):
        raise UserError(f"push {folder}: has no weights (*.safetensors): {again}")
    pickles = [path.name for path in folder.rglob("*") if path.suffix in PICKLES and "checkpoint-" not in str(path)]
    if pickles:
        raise UserError(f"push {folder}: holds {pickles[0]}, a pickle, which can run code: remove it")
    if config.num_identities or config.identities_digest:
        raise UserError(f"push {folder}: has the ID classifier, templates of the training people: export it first")
    if config.adapter not in (None, ADAPTER):
        raise UserError(f"push {folder}: its adapter {config.adapter!r} is no sub-folder of an export: {again}")
    if config.backbone and is_local(config.backbone):
        raise UserError(
            f"push {folder}: its backbone {config.backbone} is a folder, which others do not have: export it with "
            "--backbone and the backbone's name on the Hub, or with --to full"
        )
    for name in form_files(folder):
        _check_file(folder, name)


def _check_file(folder: Path, name: str) -> None:
    """Raises UserError for a file that is outside of the folder, empty, too large or invalid."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"push {folder}: {name} is a link out of the folder: put the file there, or export again")
    size = path.stat().st_size
    if not size:
        raise UserError(f"push {folder}: {name} is empty: make it with mllmreid export")
    if size > LARGEST:
        raise UserError(f"push {folder}: {name} has {size / 1e9:.0f} GB, the Hub takes 50 as one file: export it again")
    if name == LOSS_PICTURE and not is_ours(path):
        raise UserError(f"push {folder}: {name} was not written by mllmreid export: remove it, or export again")
    if name.endswith(".safetensors"):
        _check_weights(folder, name)


def _check_weights(folder: Path, name: str) -> None:
    try:
        with safe_open(folder / name, framework="numpy") as file:
            tensors, stored = list(file.keys()), file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"push {folder}: {name} is cut off or broken ({error}): export it again") from error
    classifier = [tensor for tensor in tensors if CLASSIFIER.search(tensor)]
    if classifier:
        raise UserError(
            f"push {folder}: {name} has the ID classifier ({classifier[0]}), templates of the training people: export "
            "it first"
        )
    if name == f"{ADAPTER}/{WEIGHTS}" and not all(".lora_" in tensor for tensor in tensors):
        raise UserError(f"push {folder}: {name} holds other tensors than a LoRA's: export it again")
    if without_local_paths(stored) != stored:
        raise UserError(f"push {folder}: the metadata of {name} hold a path of this machine: export it again")
