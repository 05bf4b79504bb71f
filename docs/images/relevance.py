"""Draws where similarities come from, `relevance.jpg`: a query, a crop of the same person, and one of another.

python docs/images/relevance.py

It renders people before the cameras of the test world `rendered_elsewhere`, which `pedestrians-small` has not been
trained on. It needs matplotlib (extra `plots`).
"""

import re
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diagram import INCHES, INK, save
from matplotlib.figure import Figure
from PIL import Image

from modeling_mllmreid import (
    MllmReIDVisionModel,
    MllmReIDVisionProcessor,
    draw_relevance,
    image_relevance,
    rank_gallery,
)
from modeling_mllmreid.synthetic.worlds import WORLDS
from modeling_mllmreid.synthetic.write import write_pedestrians

OUTPUT = Path(__file__).with_suffix(".jpg")
WORLD = replace(WORLDS["elsewhere"], test_identities=12, distractors=0)
QUERIES = (0, 8)  # places in the sorted files
COLOURS = "orange: alike\nblue: different"
TITLES = ("query", "same person", COLOURS, "another person", COLOURS)


def person_and_camera(path: Path) -> tuple[str, str]:
    """Returns the person and the camera in a file name of Market-1501."""
    person, camera = re.match(r"(\d+)_c(\d+)", path.name).groups()
    return person, camera


def rows(world: Path) -> list[list[Image.Image]]:
    """Returns the pictures of each query: itself, and two crops with their relevance."""
    processor = MllmReIDVisionProcessor.from_pretrained("pedestrians-small")
    model = MllmReIDVisionModel.from_pretrained("pedestrians-small").eval()
    queries = [sorted((world / "query").glob("*.jpg"))[place] for place in QUERIES]
    gallery = sorted((world / "bounding_box_test").glob("*.jpg"))
    with torch.inference_mode():
        features = [model.encode_images(processor(images=paths)["pixel_values"]) for paths in (queries, gallery)]
    ranking = rank_gallery(*features, k=len(gallery))
    pictures = []
    for query, order in zip(queries, ranking.indices, strict=True):
        person, camera = person_and_camera(query)
        ranked = [gallery[place] for place in order if person_and_camera(gallery[place]) != (person, camera)]
        same = next(path for path in ranked if person_and_camera(path)[0] == person)
        other = next(path for path in ranked if person_and_camera(path)[0] != person)
        relevance = [image_relevance(model, processor, crop, query) for crop in (same, other)]
        # One limit: the colours of both crops are comparable.
        limit = float(max(np.abs(values).max() for values in relevance))
        row = [Image.open(query)]
        for crop, values in zip((same, other), relevance, strict=True):
            row += [Image.open(crop), draw_relevance(crop, values, limit=limit)]
        pictures.append(row)
    return pictures


def draw(path: Path) -> None:
    """Draws the picture into a file."""
    with tempfile.TemporaryDirectory() as folder:
        world = write_pedestrians(Path(folder) / "world", WORLD, captions_per_image=0).root
        pictures = rows(world)
        figure = Figure(figsize=(INCHES, 3.2 * len(pictures) + 0.3), dpi=120, layout="constrained", facecolor="white")
        for axes, row in zip(figure.subplots(len(pictures), len(TITLES)), pictures, strict=True):
            for axis, picture, title in zip(axes, row, TITLES, strict=True):
                axis.imshow(picture.resize((128, 256), Image.Resampling.BICUBIC))
                axis.axis("off")
                if row is pictures[0]:
                    axis.set_title(title, fontsize=10, color=INK)
        save(figure, path)


if __name__ == "__main__":
    draw(OUTPUT)
