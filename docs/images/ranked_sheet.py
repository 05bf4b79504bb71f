"""Draws the first picture of the README, `ranked_sheet.png`: three queries of the demo and their nearest images.

python docs/images/ranked_sheet.py runs/demo

FOLDER is the output folder of `mllmreid demo`: its checkpoint, and the people that it has rendered for the test.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from modeling_mllmreid import (
    MllmReIDModel,
    MllmReIDProcessor,
    SamePerson,
    load_reid_dataset,
    rank_gallery,
    ranked_sheet,
)

OUTPUT = Path(__file__).with_suffix(".png")
QUERIES, WIDTH = 3, 1000


def draw(folder: Path, path: Path) -> None:
    """Draws the nearest images of queries that are evenly spaced over the test people."""
    processor = MllmReIDProcessor.from_pretrained(folder)
    model = MllmReIDModel.from_pretrained(folder).eval()
    people = folder / "pedestrians"
    dataset = load_reid_dataset("market1501", data_dir=people)
    query, gallery = dataset["query"], dataset["gallery"]
    query = query.select(np.linspace(0, len(query) - 1, QUERIES).round().astype(int))
    images, features = {}, {}
    for name, split in (("query", query), ("gallery", gallery)):
        images[name] = [people / file for file in split["file_name"][:]]
        with torch.inference_mode():
            batches = [images[name][start : start + 32] for start in range(0, len(split), 32)]
            encoded = [model.encode_images(processor(images=batch)["pixel_values"]) for batch in batches]
        features[name] = torch.cat(encoded)
    ids = [split[column][:] for column in ("person_id", "camera_id") for split in (query, gallery)]
    with tempfile.TemporaryDirectory() as temporary:
        sheet = Path(temporary) / "sheet.png"
        ranked_sheet(
            sheet,
            images["query"],
            images["gallery"],
            rank_gallery(features["query"], features["gallery"], 10, same_person=SamePerson(*ids)),
            **dict(zip(("query_person_ids", "gallery_person_ids"), ids[:2], strict=True)),
            **dict(zip(("query_camera_ids", "gallery_camera_ids"), ids[2:], strict=True)),
            title=f"Rendered pedestrians never seen in training, feature {model.config.test_feature!r}",
        )
        picture = Image.open(sheet).convert("RGB")
    picture = picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python docs/images/ranked_sheet.py FOLDER")
    draw(Path(sys.argv[1]), OUTPUT)
