"""Draws the method, `architecture.png`: both branches, what is trained, the features, and where each loss acts.

python docs/images/architecture.py

It renders one person. It needs matplotlib (extra `plots`).
"""

import json
import tempfile
import textwrap
from pathlib import Path

from diagram import DATA, FEATURE, FROZEN, LOSS, TRAINED, arrow, box, legend, note, page, save
from matplotlib.axes import Axes
from PIL import Image

from modeling_mllmreid.synthetic.write import write_pedestrians

OUTPUT = Path(__file__).with_suffix(".png")
HEIGHT = 100.0
# Cells of the two token sequences: left edge, width.
IMAGE_CELLS = {"image tokens": (24.0, 15.0), "instruction": (39.0, 11.0), "target": (50.0, 10.0)}
TEXT_CELLS = {"caption": (62.0, 12.0), "instruction": (74.0, 11.0), "target": (85.0, 10.0)}
COLOURS = {"image tokens": TRAINED, "caption": DATA, "instruction": FROZEN, "target": DATA}
TOKENS = 46.0  # bottom of the sequences


def person(folder: Path) -> tuple[Image.Image, str]:
    """Renders one person; returns a crop and its caption."""
    write_pedestrians(folder / "person", train_identities=1, test_identities=0, scenes=2, cameras=1, processes=1)
    record = json.loads((folder / "person/reid_raw.json").read_text(encoding="utf-8"))[0]
    return Image.open(folder / "person" / record["file_path"]).convert("RGB"), record["captions"][0]


def middle(cell: tuple[float, float]) -> float:
    """Returns the middle of a cell."""
    return cell[0] + cell[1] / 2


def draw_inputs(axes: Axes, crop: Image.Image, caption: str) -> None:
    """Draws the crop, its caption, and the continuation that is the target of both branches."""
    axes.imshow(crop, extent=(28, 35, 3, 17), aspect="auto", zorder=2)
    note(axes, (31.5, 1.4), "person crop", align="center")
    lines = textwrap.wrap(f"“{caption}”", 40)
    box(axes, (62, 3, 36, 14), "caption", "\n".join(lines[:4]), fill=DATA)
    text = "as it was before the training\nwrites the target, once"
    box(axes, (73, 24, 25, 9.5), "base language model", text, fill=FROZEN)
    arrow(axes, [(85.5, 17), (85.5, 24)])
    first, second = middle(IMAGE_CELLS["target"]), middle(TEXT_CELLS["target"])
    arrow(axes, [(85.5, 33.5), (85.5, 40), (first, 40), (first, TOKENS)])
    arrow(axes, [(85.5, 40), (second, 40), (second, TOKENS)])
    axes.plot([68, 68], [38.8, 41.2], color="white", lw=7)  # both lines cross without meeting
    arrow(axes, [(68, 17), (68, TOKENS)])
    note(axes, ((first + 68) / 2, 38.2), "same target", align="center")


def draw_model(axes: Axes) -> None:
    """Draws encoder, projector, both sequences and the language model."""
    box(axes, (22.5, 21.5, 18, 9.5), "visual encoder", "all weights, LoRA,\nor frozen", fill=TRAINED)
    box(axes, (22.5, 35, 18, 6), "projector", fill=TRAINED)
    for start, end in ((17, 21.5), (31, 35), (41, TOKENS)):
        arrow(axes, [(31.5, start), (31.5, end)])
    for cells in (IMAGE_CELLS, TEXT_CELLS):
        for name, cell in cells.items():
            box(axes, (cell[0], TOKENS, cell[1], 5), name, fill=COLOURS[name], size=8)
            arrow(axes, [(middle(cell), TOKENS + 5), (middle(cell), 54.5)])
    note(axes, (33, 43.6), "image branch", size=9)
    note(axes, (69.5, 43.6), "text branch", size=9)
    box(
        axes,
        (22.5, 54.5, 75.5, 8),
        "language model",
        "one for both branches: all weights, LoRA, or frozen",
        fill=TRAINED,
    )


def draw_losses(axes: Axes) -> None:
    """Draws the features, their heads, and the losses."""
    for left, name, text in ((2, "vision", "mean over the\npatches"), (22.5, "llm", "mean over the\nimage tokens")):
        box(axes, (left, 67, 18, 8.5), f"feature {name}", text, fill=FEATURE, size=9)
        arrow(axes, [(left + 9, 75.5), (left + 9, 79)])
        box(axes, (left, 79, 18, 7.5), "ID + triplet", "head with BNNeck", fill=LOSS, size=9)
        arrow(axes, [(left + 9, 86.5), (left + 9, 90)])
    arrow(axes, [(22.5, 26.2), (11, 26.2), (11, 67)])
    arrow(axes, [(31.5, 62.5), (31.5, 67)])
    for cells in (IMAGE_CELLS, TEXT_CELLS):
        center = middle(cells["target"])
        box(axes, (center - 8, 79, 16, 7.5), "language loss", "on the target", fill=LOSS, size=9)
        arrow(axes, [(center, 62.5), (center, 79)])
        arrow(axes, [(center, 86.5), (center, 90)])
    text = "loss  =  (1 − λ) · mean language loss  +  λ · mean (ID + triplet) of the heads,   λ = 0.7"
    box(axes, (2, 90, 96, 7), text, fill=LOSS, size=10)


def draw(path: Path) -> None:
    """Draws the figure into a file."""
    figure, axes = page(HEIGHT)
    with tempfile.TemporaryDirectory() as folder:
        draw_inputs(axes, *person(Path(folder)))
    draw_model(axes)
    draw_losses(axes)
    meanings = [(TRAINED, "trained"), (FROZEN, "not trained"), (DATA, "data"), (LOSS, "loss")]
    legend(axes, (2, 16), [*meanings, (FEATURE, "feature (concat: both)")])
    save(figure, path)


if __name__ == "__main__":
    draw(OUTPUT)
