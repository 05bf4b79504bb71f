"""Draws the way from data to results, `data_flow.png`: what a training and what a search consist of.

python docs/images/data_flow.py

It needs matplotlib (extra `plots`).
"""

from pathlib import Path

from diagram import DATA, FEATURE, FROZEN, LOSS, TRAINED, arrow, box, note, page, save

OUTPUT = Path(__file__).with_suffix(".png")
HEIGHT = 56.0
WIDTH, COLUMNS = 16.4, (1.5, 21.7, 41.9, 62.1, 82.1)
TRAINING = (
    ("data", "readers, splits,\ncaptions", DATA),
    ("batches", "P people x K images,\naugmentation", DATA),
    ("model", "a crop in,\nfeatures and text out", TRAINED),
    ("losses", "ID, triplet,\nlanguage", LOSS),
    ("trainer", "steps, validation,\ncheckpoints", TRAINED),
)
# Name, text, result, text of the result, height of the middle.
USES = (
    ("gallery", "add, filter, group,\nerase", "page", "HTTP, audit trail", 28.0),
    ("search", "the nearest crops\nof a photo", "ranked sheet", "or “nobody”", 17.0),
    ("evaluation", "query against gallery,\nverification", "metrics", "with intervals, curves", 6.0),
)
TALL = 8.6


def draw(path: Path) -> None:
    """Draws the figure into a file."""
    figure, axes = page(HEIGHT)
    note(axes, (1.5, 54), "TRAINING", size=9)
    note(axes, (1.5, 35.2), "USE", size=9)
    for left, (name, text, fill) in zip(COLUMNS, TRAINING, strict=True):
        box(axes, (left, 41, WIDTH, 10), name, text, fill=fill)
    for left, right in zip(COLUMNS[:-1], COLUMNS[1:], strict=True):
        arrow(axes, [(left + WIDTH, 46), (right, 46)])
    arrow(axes, [(90.3, 41), (90.3, 32.3)])
    box(axes, (82.1, 28 - TALL / 2, WIDTH, TALL), "checkpoint", "weights, processor,\nthreshold", fill=TRAINED)
    box(axes, (82.1, 17 - TALL / 2, WIDTH, TALL), "crops", "a folder, a photo", fill=DATA)
    box(axes, (62.1, 17 - TALL / 2, WIDTH, 11 + TALL), "embeddings", "a feature\nfor each crop", fill=FEATURE)
    box(axes, (62.1, 6 - TALL / 2, WIDTH, TALL), "any features", "of another toolkit", fill=FEATURE)
    for height in (28, 17):
        arrow(axes, [(82.1, height), (62.1 + WIDTH, height)])
    for name, text, result, of_result, height in USES:
        box(axes, (35, height - TALL / 2, 22, TALL), name, text, fill=FROZEN)
        box(axes, (1.5, height - TALL / 2, 26, TALL), result, of_result, fill=DATA)
        arrow(axes, [(35, height), (27.5, height)])
        arrow(axes, [(62.1, height), (57, height)])
    arrow(axes, [(62.1, 14.5), (59.6, 14.5), (59.6, 8), (57, 8)])
    save(figure, path)


if __name__ == "__main__":
    draw(OUTPUT)
