"""The settings of a training that a reader of its card needs, from what the run wrote down."""

from collections.abc import Mapping, Sequence
from typing import Any

from ..markdown import Markdown, code
from .loss_curves import is_number


def settings(
    config: Mapping[str, Any],
    training_args: Mapping[str, Any] | None,
    run: Mapping[str, Any],
    log_history: Sequence[Mapping[str, Any]],
) -> list[tuple[str, str]]:
    """Names and values, in words; only what was recorded. Empty without training arguments.

    run: run.json, {} where there is none.
    """
    if training_args is None:
        return []
    rows = [*_method(config), *_adapters(run.get("adapters") or {}), *_optimisation(training_args, log_history)]
    rows += _batches(run.get("batches") or {})
    return [(name, value) for name, value in rows if value]


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _method(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("crop, height x width", f"{config['height']} x {config['width']}" if config.get("height") else "")]
    if config.get("loss_lambda") is None:  # a vision form keeps none of them
        return rows
    margin = "soft margin" if config.get("triplet_soft_margin") else f"margin {config.get('triplet_margin')}"
    id_loss = f"weight {config.get('id_weight')}, label smoothing {config.get('label_smoothing')}"
    triplet = f"weight {config.get('triplet_weight')}, batch-hard, {margin}"
    return [
        *rows,
        ("lambda (share of the ReID losses)", f"{config['loss_lambda']:g}"),
        ("ReID losses on", _HEADS.get(str(config.get("reid_on")), "")),
        ("ID loss", id_loss if config.get("id_weight") is not None else ""),
        ("triplet loss", triplet if config.get("triplet_weight") is not None else ""),
        ("distillation weight", f"{config['distillation_weight']:g}" if config.get("distillation_weight") else ""),
        ("ReID losses on captions", "yes" if config.get("reid_text") else ""),
    ]


_HEADS = {name: Markdown(f"`{name}`") for name in ("llm", "vision")}
_HEADS["both"] = Markdown("`llm` and `vision`")


def _adapters(adapters: Mapping[str, Any]) -> list[tuple[str, str]]:
    words = {"full": "trained whole", "lora": "trained by LoRA", "frozen": "frozen"}
    rows = [(title, words.get(str(adapters.get(key)), "")) for key, title in _MODULES.items()]
    if "lora" in (adapters.get("language_model"), adapters.get("tower")):
        values = (adapters.get(f"lora_{name}") for name in ("rank", "alpha", "dropout"))
        rows.append(("LoRA", "rank {}, alpha {}, dropout {}".format(*values)))
        targets = adapters.get("lora_targets")
        rows.append(("LoRA on", code(targets) if targets else "all linear layers of what is trained by it"))
    rows.append(("quantisation of the frozen language model", adapters.get("quantize") or ""))
    return rows


_MODULES = {"language_model": "language model", "tower": "visual encoder"}


def _optimisation(args: Mapping[str, Any], log_history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    people, images = args.get("identities_per_batch"), args.get("images_per_identity")
    accumulation = args.get("gradient_accumulation_steps") or 1
    batch = f"P x K = {people} x {images} on each device" if people and images else ""
    # Foreign logs hold anything.
    logged = [entry for entry in log_history if is_number(entry.get("step"))]
    last = max(logged, key=lambda entry: entry["step"], default={})
    rates = [f"{code(pattern)}: {rate:g}" for pattern, rate in (args.get("learning_rates") or {}).items()]
    schedule = f"{args.get('lr_scheduler_type')}, warm-up {args.get('warmup_steps') or 0:g}"
    precision = next((name for name, key in (("bfloat16", "bf16"), ("float16", "fp16")) if args.get(key)), "float32")
    precision = precision if "bf16" in args or "fp16" in args else ""
    kept = {True: "best on the validation people", False: "of the last step"}
    return [
        ("batch", batch + (f", gradients of {accumulation} batches added" if batch and accumulation > 1 else "")),
        ("optimiser steps", f"{last['step']:,}" if "step" in last else ""),
        ("epochs", f"{last['epoch']:g}" if is_number(last.get("epoch")) else ""),
        ("optimiser", str(args.get("optim") or "")),
        ("learning rate", f"{args['learning_rate']:g}" if args.get("learning_rate") is not None else ""),
        ("learning rates by parameter name", Markdown(", ".join(rates))),
        ("schedule", schedule if args.get("lr_scheduler_type") else ""),
        ("weight decay", f"{args['weight_decay']:g}" if args.get("weight_decay") is not None else ""),
        ("gradients cut to norm", f"{args['max_grad_norm']:g}" if args.get("max_grad_norm") else ""),
        ("precision", precision),
        ("seed", str(args["seed"]) if args.get("seed") is not None else ""),
        ("weights kept", kept.get(args["load_best_model_at_end"], "") if "load_best_model_at_end" in args else ""),
    ]


def _batches(batches: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {"flip": "mirroring", "pad": "shift in pixels", "erase": "erasing"}
    augmentation = ", ".join(f"{word} {batches[key]}" for key, word in names.items() if key in batches)
    branches = "image and text" if batches.get("text_branch") else "image" if "text_branch" in batches else ""
    return [
        ("instruction", str(batches.get("instruction") or "")),
        ("language target", str(batches.get("target") or "")),
        ("branches", branches),
        ("people held out of the training part for validation", str(batches.get("val_identities") or "")),
        ("augmentation", augmentation),
    ]
