"""The training loss and its parts, as a small table and as a picture."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..evaluation.plots import COLORS, STYLES, figure_class
from ..markdown import plain
from ..outputs import PNG_SOFTWARE, written_aside

# What the Trainer logs beside the loss and its parts.
_OTHERS = {"epoch", "grad_norm", "learning_rate", "loss", "num_input_tokens_seen", "step"}

# The loss has about ten; a foreign log may name any number.
MOST_PARTS = 20

Log = Sequence[Mapping[str, Any]]


def loss_points(log_history: Log) -> list[Mapping[str, Any]]:
    """The entries of trainer_state.json's log that hold a training loss."""
    return [entry for entry in log_history if is_number(entry.get("loss")) and is_number(entry.get("step"))]


def loss_parts(log_history: Log) -> list[str]:
    """The names of the loss's parts, sorted."""
    names = {name for entry in loss_points(log_history) for name, value in entry.items() if is_number(value)}
    return sorted(name for name in names - _OTHERS if not name.startswith("eval_"))[:MOST_PARTS]


def loss_table(log_history: Log, *, at_most: int = 10) -> list[list[str]]:
    """Lines of cells, the head first: step, loss and each part at evenly spread points, the first and last among them.

    Empty without a logged loss.
    """
    points = loss_points(log_history)
    if not points:
        return []
    last, shown = len(points) - 1, min(at_most, len(points))
    chosen = [points[round(i * last / max(shown - 1, 1))] for i in range(shown)]
    names = ["loss", *loss_parts(log_history)]
    cells = [[f"{entry['step']:,}", *(_cell(entry.get(name)) for name in names)] for entry in chosen]
    return [["step", *names], *cells]


def draw_loss_curves(path_png: str | os.PathLike[str], log_history: Log) -> None:
    """Draws the loss and each part over the steps.

    Raises UserError where matplotlib is not installed, ValueError where no loss was logged.
    """
    points = loss_points(log_history)
    if not points:
        raise ValueError("log_history: no entry with a loss: nothing to draw")
    figure = figure_class()(figsize=(7, 4.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(["loss", *loss_parts(log_history)]):
        known = [(entry["step"], entry[name]) for entry in points if is_number(entry.get(name))]
        look = {"color": COLORS[number % len(COLORS)], "linestyle": STYLES[number // len(COLORS) % len(STYLES)]}
        marker = "o" if len(known) == 1 else ""
        axes.plot(
            *zip(*known, strict=True), label=_label(name), marker=marker, linewidth=2.4 if number == 0 else 1.4, **look
        )
    axes.set(xlabel="step", ylabel="loss", title="Training loss and its parts")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside right upper", frameon=False)
    with written_aside(path_png) as aside:
        figure.savefig(aside, format="png", metadata={"Software": PNG_SOFTWARE})


def is_number(value: Any) -> bool:
    """Whether an entry of a log is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _label(name: str) -> str:
    """A name in the legend, where dollars would make a formula and a leading underscore hides it."""
    return plain(name)[:24].replace("$", r"\$").lstrip("_") or "?"


def _cell(value: Any) -> str:
    return f"{value:.3f}" if is_number(value) else "-"
