"""A picture of a data set: a row for each of some people, with some images of each."""

import os

import numpy as np
from datasets import DatasetDict
from PIL import Image, ImageDraw, ImageFont, ImageOps

from .columns import UNKNOWN_CAMERA, image_sources
from .images import open_image

CROP, GAP, CAPTION, HEAD = (72, 144), 6, 16, 26
PAPER, INK, FAINT = "#ffffff", "#1c2733", "#6b7785"


def contact_sheet(
    path_png: str | os.PathLike[str], dataset: DatasetDict, *, people: int = 4, images: int = 8, seed: int = 0
) -> None:
    """Draws people of each split, drawn by the seed, each with the first images by file name, captioned by camera.

    Raises UserError for a broken image.
    """
    rows = [
        (split, row) for split, part in dataset.items() for row in _rows(part["person_id"][:], people, images, seed)
    ]
    width = 2 * GAP + images * (CROP[0] + GAP)
    height = GAP + sum(CROP[1] + CAPTION + HEAD + GAP for _ in rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    sources = {split: image_sources(part) for split, part in dataset.items()}
    top = GAP
    for split, indices in rows:
        part = dataset[split]
        captions = part[indices[0]]["caption"]
        title = f"{split}, person {part[indices[0]]['person_id']}" + (f": {captions[0]}" if captions else "")
        draw.text((GAP, top + 4), _fitted(title, width - 2 * GAP), fill=INK, font=ImageFont.load_default(13))
        top += HEAD
        for column, index in enumerate(indices):
            left = GAP + column * (CROP[0] + GAP)
            crop = ImageOps.pad(open_image(sources[split][index]), CROP, color="#eceff3")
            sheet.paste(crop, (left, top))
            camera = part[index]["camera_id"]
            text = "" if camera == UNKNOWN_CAMERA else f"cam {camera}"
            draw.text((left, top + CROP[1] + 2), text, fill=FAINT, font=ImageFont.load_default(11))
        top += CROP[1] + CAPTION + GAP
    sheet.save(path_png, format="PNG", optimize=True)


def _rows(person_ids: list[int], people: int, images: int, seed: int) -> list[list[int]]:
    """Rows of the split, a list for each of the drawn people."""
    ids = np.asarray(person_ids)
    distinct = np.unique(ids)
    drawn = np.sort(np.random.default_rng(seed).permutation(distinct)[:people])
    return [[int(row) for row in np.flatnonzero(ids == person)[:images]] for person in drawn]


def _fitted(text: str, width: int) -> str:
    """The text, cut with dots where it is wider than so many pixels."""
    font = ImageFont.load_default(13)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
