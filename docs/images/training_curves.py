"""Draws the curves of a training, `training_curves.png`: the losses, and the validation.

python docs/images/training_curves.py runs/demo

FOLDER is the output folder of any training, here of `mllmreid demo`. It needs matplotlib (extra `plots`).
"""

import json
import sys
from pathlib import Path
from typing import Any

from diagram import DPI, FAINT, INCHES, INK, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OUTPUT = Path(__file__).with_suffix(".png")
# Okabe and Ito's palette, which colour-blind readers can distinguish.
COLORS = {"image": "#D55E00", "text": "#E69F00", "llm": "#0072B2", "vision": "#009E73", "concat": "#CC79A7"}
# Title of a panel, prefix and suffix of the keys in the log, and what each key is called.
PANELS = (
    ("language loss", "lm_", "", {"image": "image branch", "text": "text branch"}),
    ("ID loss", "id_", "", {"llm": "llm", "vision": "vision"}),
    ("triplet loss", "triplet_", "", {"llm": "llm", "vision": "vision"}),
    ("mAP on the people of val, %", "eval_", "_mAP", {"llm": "llm", "vision": "vision", "concat": "concat"}),
)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Returns the entries of a training's log."""
    lines = (folder / "training_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def draw_panel(
    axis: Axes, log: list[dict[str, Any]], title: str, prefix: str, suffix: str, names: dict[str, str]
) -> None:
    """Draws the values of one kind over the steps."""
    scale = 100 if suffix == "_mAP" else 1
    for name, label in names.items():
        key = f"{prefix}{name}{suffix}"
        points = [(entry["step"], scale * entry[key]) for entry in log if key in entry]
        if points:
            marker = "o" if len(points) < 10 else ""
            axis.plot(*zip(*points, strict=True), label=label, color=COLORS[name], lw=1.8, marker=marker, markersize=4)
    axis.set_title(title, fontsize=10, color=INK)
    axis.set_xlabel("step", fontsize=9, color=FAINT)
    axis.set_xlim(0, max(entry["step"] for entry in log) * 1.03)
    axis.set_ylim(0, axis.dataLim.y1 * 1.08 if axis.lines else 1)
    axis.tick_params(labelsize=8.5, colors=FAINT)
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if axis.lines:
        axis.legend(fontsize=9, frameon=False)


def draw(folder: Path, path: Path) -> None:
    """Draws the curves of the training in a folder into a file."""
    log = read_log(folder)
    figure = Figure(figsize=(INCHES, 5.6), dpi=DPI, layout="constrained", facecolor="white")
    for axis, panel in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        draw_panel(axis, log, *panel)
    save(figure, path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/images/training_curves.py FOLDER")
    draw(Path(sys.argv[1]), OUTPUT)
