"""The training section of a model card: settings, and losses as a table and as a plot."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.plots import COLORS, STYLES, figure_class
from ..utils.markdown import Markdown, code, plain
from ..utils.outputs import PNG_SOFTWARE, atomic_file

# Numbers that the Trainer logs in addition to the loss and its parts.
_OTHER_NUMBERS = {"epoch", "grad_norm", "learning_rate", "loss", "num_input_tokens_seen", "step"}

# The loss has about ten parts; a foreign log may have any number.
MAX_PARTS = 20

Log = Sequence[Mapping[str, Any]]


def loss_points(log_history: Log) -> list[Mapping[str, Any]]:
    """Returns the entries of trainer_state.json's log with a training loss."""
    return [entry for entry in log_history if is_number(entry.get("loss")) and is_number(entry.get("step"))]


def loss_parts(log_history: Log) -> list[str]:
    """Returns the names of the parts of the loss, sorted."""
    names = {name for entry in loss_points(log_history) for name, value in entry.items() if is_number(value)}
    return sorted(name for name in names - _OTHER_NUMBERS if not name.startswith("eval_"))[:MAX_PARTS]


def loss_table(log_history: Log, *, at_most: int = 10) -> list[list[str]]:
    """Tabulates step, loss and each part of the loss at evenly spread steps, with the first and the last.

    Args:
        log_history (`list[dict]`):
            `log_history` of trainer_state.json.
        at_most (`int`, *optional*, defaults to 10):
            Largest number of steps.

    Returns:
        `list[list[str]]`: lines of cells, the header first; empty without a logged loss.
    """
    points = loss_points(log_history)
    if not points:
        return []
    last, count = len(points) - 1, min(at_most, len(points))
    chosen = [points[round(i * last / max(count - 1, 1))] for i in range(count)]
    names = ["loss", *loss_parts(log_history)]
    cells = [[f"{entry['step']:,}", *(_cell(entry.get(name)) for name in names)] for entry in chosen]
    return [["step", *names], *cells]


def draw_loss_curves(path_png: str | os.PathLike[str], log_history: Log) -> None:
    """Plots the loss and each of its parts over the steps.

    Args:
        path_png (`str` or `os.PathLike`):
            The PNG file.
        log_history (`list[dict]`):
            `log_history` of trainer_state.json.

    Raises:
        UserError: if matplotlib is not installed.
        ValueError: if no loss is in the log.
    """
    points = loss_points(log_history)
    if not points:
        raise ValueError("log_history: no entry with a loss: nothing to draw")
    figure = figure_class()(figsize=(7, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(["loss", *loss_parts(log_history)]):
        values = [(entry["step"], entry[name]) for entry in points if is_number(entry.get(name))]
        style = {"color": COLORS[number % len(COLORS)], "linestyle": STYLES[number // len(COLORS) % len(STYLES)]}
        marker = "o" if len(values) == 1 else ""
        width = 2.4 if number == 0 else 1.4
        axes.plot(
            *zip(*values, strict=True),
            label=_label(name),
            marker=marker,
            linewidth=width,
            **style,
        )
    axes.set(xlabel="step", ylabel="loss", title="Training loss and its parts")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", frameon=False)
    with atomic_file(path_png) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": PNG_SOFTWARE})


def is_number(value: Any) -> bool:
    """Returns whether a value of a log is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(name: str) -> str:
    """Returns a name for the legend, where dollars make a formula and a leading underscore hides the line."""
    return plain(name)[:24].replace("$", r"\$").lstrip("_") or "?"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if is_number(value) else "-"


def settings(
    config: Mapping[str, Any],
    training_args: Mapping[str, Any] | None,
    run: Mapping[str, Any],
    log_history: Sequence[Mapping[str, Any]],
) -> list[tuple[str, str]]:
    """Returns the recorded settings of a training in words.

    Args:
        config (`dict`):
            Content of config.json.
        training_args (`dict`, *optional*):
            Content of training_args.json.
        run (`dict`):
            Content of run.json; empty without one.
        log_history (`list[dict]`):
            `log_history` of trainer_state.json.

    Returns:
        `list[tuple[str, str]]`: names and values; empty without training arguments.
    """
    if training_args is None:
        return []
    method, adapters = _method(config), _adapters(run.get("adapters") or {})
    lines = [*method, *adapters, *_optimisation(training_args, log_history), *_batches(run.get("batches") or {})]
    return [(name, value) for name, value in lines if value]


def duration(seconds: float) -> str:
    """Returns seconds in words."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _method(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    lines = [("crop, height x width", f"{config['height']} x {config['width']}" if config.get("height") else "")]
    if config.get("id_weight") is None or config.get("exported"):  # an exported vision form does not record its losses
        return lines
    margin = "soft margin" if config.get("triplet_soft_margin") else f"margin {config.get('triplet_margin')}"
    id_loss = f"weight {config.get('id_weight')}, label smoothing {config.get('label_smoothing')}"
    scale = _SCALES.get(str(config.get("triplet_scale")), "")
    triplet = f"weight {config.get('triplet_weight')}, batch-hard, {margin}{scale}"
    return [
        *lines,
        ("lambda (share of the ReID losses)", f"{config['loss_lambda']:g}" if "loss_lambda" in config else ""),
        ("ReID losses on", _HEADS.get(str(config.get("reid_on")), "")),
        ("ID loss", id_loss if config.get("id_weight") is not None else ""),
        ("triplet loss", triplet if config.get("triplet_weight") is not None else ""),
        ("distillation weight", f"{config['distillation_weight']:g}" if config.get("distillation_weight") else ""),
        ("weight of the loss of pairs", f"{config['pair_weight']:g}" if config.get("pair_weight") else ""),
        ("ReID losses on captions", "yes" if config.get("reid_text") else ""),
    ]


_SCALES = {"batch": ", features scaled by the batch's spread", "unit": ", features of length 1"}
_HEADS = {name: Markdown(f"`{name}`") for name in ("llm", "vision")}
_HEADS["both"] = Markdown("`llm` and `vision`")


def _adapters(adapters: Mapping[str, Any]) -> list[tuple[str, str]]:
    words = {"full": "all weights trained", "lora": "trained by LoRA", "frozen": "frozen"}
    lines = [(title, words.get(str(adapters.get(key)), "")) for key, title in _MODULES.items()]
    if "lora" in (adapters.get("language_model"), adapters.get("tower")):
        values = (adapters.get(f"lora_{name}") for name in ("rank", "alpha", "dropout"))
        lines.append(("LoRA", "rank {}, alpha {}, dropout {}".format(*values)))
        targets = adapters.get("lora_targets")
        lines.append(("LoRA on", code(targets) if targets else "all linear layers of these modules"))
    lines.append(("quantisation of the frozen language model", adapters.get("quantize") or ""))
    return lines


_MODULES = {"language_model": "language model", "tower": "visual encoder"}


def _optimisation(args: Mapping[str, Any], log_history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    identities, images = args.get("identities_per_batch"), args.get("images_per_identity")
    accumulation = args.get("gradient_accumulation_steps") or 1
    batch = f"P x K = {identities} x {images} on each device" if identities and images else ""
    if args.get("pairs_per_batch"):
        batch = f"{args['pairs_per_batch']} shuffled images with captions on each device"
    # Foreign logs may hold anything.
    logged = [entry for entry in log_history if is_number(entry.get("step"))]
    last = max(logged, key=lambda entry: entry["step"], default={})
    rates = [f"{code(pattern)}: {rate:g}" for pattern, rate in (args.get("learning_rates") or {}).items()]
    schedule = f"{args.get('lr_scheduler_type')}, warm-up {args.get('warmup_steps') or 0:g}"
    precision = next((name for name, key in (("bfloat16", "bf16"), ("float16", "fp16")) if args.get(key)), "float32")
    precision = precision if "bf16" in args or "fp16" in args else ""
    weights = {True: "best on the validation people", False: "of the last step"}
    return [
        ("batch", batch + (f", gradients of {accumulation} batches added" if batch and accumulation > 1 else "")),
        ("optimiser steps", f"{last['step']:,}" if "step" in last else ""),
        ("epochs", f"{last['epoch']:g}" if is_number(last.get("epoch")) else ""),
        ("optimiser", str(args.get("optim") or "")),
        ("learning rate", f"{args['learning_rate']:g}" if args.get("learning_rate") is not None else ""),
        ("learning rates by parameter name", Markdown(", ".join(rates))),
        ("schedule", schedule if args.get("lr_scheduler_type") else ""),
        ("weight decay", f"{args['weight_decay']:g}" if args.get("weight_decay") is not None else ""),
        ("maximum gradient norm", f"{args['max_grad_norm']:g}" if args.get("max_grad_norm") else ""),
        ("precision", precision),
        ("seed", str(args["seed"]) if args.get("seed") is not None else ""),
        ("weights kept", weights.get(args["load_best_model_at_end"], "") if "load_best_model_at_end" in args else ""),
    ]


def _batches(batches: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {"flip": "mirroring", "pad": "shift in pixels", "erase": "erasing"}
    names |= {"color_jitter": "colour jitter", "downscale": "downscaling"}
    augmentation = ", ".join(f"{word} {batches[key]}" for key, word in names.items() if key in batches)
    branches = "image and text" if batches.get("text_branch") else "image" if "text_branch" in batches else ""
    return [
        ("instruction", str(batches.get("instruction") or "")),
        ("language target", str(batches.get("target") or "")),
        ("branches", branches),
        ("validation people, held out of the training split", str(batches.get("val_identities") or "")),
        ("augmentation", augmentation),
    ]
