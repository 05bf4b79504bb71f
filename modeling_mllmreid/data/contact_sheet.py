"""A picture of a data set: how many images people have, and below a row for each of some people."""

import os
from collections import Counter

import numpy as np
from datasets import DatasetDict
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..outputs import png_info, written_aside
from .columns import camera_names, image_sources, labelled, person_names
from .images import open_image

CROP, GAP, CAPTION, HEAD = (72, 144), 6, 16, 26
PAPER, INK, FAINT, BAR = "#ffffff", "#1c2733", "#6b7785", "#3b6ea5"
HISTOGRAM, BARS = 96, 24
LONGEST_TEXT = 500


def contact_sheet(
    path_png: str | os.PathLike[str], dataset: DatasetDict, *, people: int = 4, images: int = 8, seed: int = 0
) -> None:
    """Draws for each split how many images people have, and some people's first images by file name.

    The people are drawn by the seed; images are captioned by camera.
    Raises UserError for a broken image.
    """
    dataset = DatasetDict({split: part for split, part in dataset.items() if len(part)})
    rows = [
        (split, row) for split, part in dataset.items() for row in _rows(part["person_id"][:], people, images, seed)
    ]
    width = 2 * GAP + images * (CROP[0] + GAP)
    height = 2 * GAP + HISTOGRAM + sum(CROP[1] + CAPTION + HEAD + GAP for _ in rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    sources = {split: image_sources(part) for split, part in dataset.items()}
    panel = (width - 2 * GAP) // max(len(dataset), 1)
    for place, (split, part) in enumerate(dataset.items()):
        _histogram(draw, split, part["person_id"][:], left=GAP + place * panel, width=panel - 3 * GAP)
    top = 2 * GAP + HISTOGRAM
    for split, indices in rows:
        part = dataset[split]
        captions = part[indices[0]]["caption"]
        who = labelled("person", person_names(part.select(indices[:1]))[0])
        cameras = camera_names(part.select(indices))
        title = f"{split}, {who}" + (f": {captions[0]}" if captions else "")
        draw.text((GAP, top + 4), _fitted(title, width - 2 * GAP), fill=INK, font=ImageFont.load_default(13))
        top += HEAD
        for column, index in enumerate(indices):
            left = GAP + column * (CROP[0] + GAP)
            crop = ImageOps.pad(open_image(sources[split][index]), CROP, color="#eceff3")
            sheet.paste(crop, (left, top))
            text = _fitted(labelled("cam", cameras[column]), CROP[0])
            draw.text((left, top + CROP[1] + 2), text, fill=FAINT, font=ImageFont.load_default(11))
        top += CROP[1] + CAPTION + GAP
    with written_aside(path_png) as aside:
        sheet.save(aside, format="PNG", optimize=True, pnginfo=png_info())


def _histogram(draw: ImageDraw.ImageDraw, split: str, person_ids: list[int], *, left: int, width: int) -> None:
    """How many people have how many images; the last bar holds those with more than there are bars."""
    counts = Counter(min(count, BARS) for count in Counter(person_ids).values())
    last = max(counts)
    bottom, tallest, bar = GAP + HISTOGRAM - CAPTION, max(counts.values()), width / last
    small = ImageFont.load_default(11)
    draw.text((left, GAP), f"{split}: images of a person", fill=INK, font=ImageFont.load_default(13))
    for number, people in counts.items():
        height = max(round((HISTOGRAM - CAPTION - HEAD) * people / tallest), 1)
        x = left + (number - 1) * bar
        draw.rectangle((x, bottom - height, x + max(bar - 2, 1), bottom), fill=BAR)
    draw.text((left, bottom + 2), "1", fill=FAINT, font=small)
    most = f"{last}{' or more' if last == BARS else ''}, highest bar {tallest:,} people"
    draw.text((left + width, bottom + 2), most, fill=FAINT, font=small, anchor="ra")


def _rows(person_ids: list[int], people: int, images: int, seed: int) -> list[list[int]]:
    """Rows of the split, a list for each of the drawn people."""
    ids = np.asarray(person_ids)
    distinct = np.unique(ids)
    drawn = np.sort(np.random.default_rng(seed).permutation(distinct)[:people])
    return [[int(row) for row in np.flatnonzero(ids == person)[:images]] for person in drawn]


def _fitted(text: str, width: int) -> str:
    """The text, cut with dots where it is wider than so many pixels."""
    font = ImageFont.load_default(13)
    # Text of several lines has no length.
    text = " ".join(text[:LONGEST_TEXT].split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
