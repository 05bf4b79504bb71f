"""What a data set holds: counts, captions, broken images, copies across splits, and a contact sheet."""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from PIL import Image, ImageDraw, ImageFont, ImageOps
from tqdm.auto import tqdm

from ..utils.errors import UserError
from ..utils.outputs import atomic_file, png_info
from .contract import UNKNOWN_CAMERA, camera_names, display_label, image_sources, names_by_camera, person_names
from .images import EmbeddedImage, ImageSource, open_image

WORD = re.compile(r"[^\W_]+")


def describe(split: Dataset) -> dict[str, Any]:
    """Counts of a split: images, persons, cameras, images of a person, captions and their words; JSON-able."""
    persons, cameras = Counter(split["person_id"][:]), Counter(split["camera_id"][:])
    called = names_by_camera(split)
    captions = [caption for captions in split["caption"][:] for caption in captions]
    words = [WORD.findall(caption.lower()) for caption in captions]
    unknown = cameras.pop(UNKNOWN_CAMERA, 0)
    return {
        "images": len(split),
        "persons": len(persons),
        "cameras": {called[camera]: cameras[camera] for camera in sorted(cameras)},
        "images_of_unknown_camera": unknown,
        "images_of_a_person": _spread(list(persons.values())),
        "persons_by_their_images": {str(n): count for n, count in sorted(Counter(persons.values()).items())},
        "captions": len(captions),
        "words_of_a_caption": _spread([len(of_caption) for of_caption in words]),
        "vocabulary": len({word for of_caption in words for word in of_caption}),
    }


def _spread(values: list[int]) -> dict[str, float] | None:
    """Smallest, median, mean and largest; None without values."""
    if not values:
        return None
    array = np.asarray(values)
    return {
        "min": int(array.min()),
        "median": float(np.median(array)),
        "mean": float(array.mean()),
        "max": int(array.max()),
    }


def examine_images(dataset: DatasetDict, *, threads: int = 8) -> tuple[list[str], list[list[str]]]:
    """(what is wrong with each broken image, groups of "split/file_name" of the same bytes in more than one split).

    An image that stands in several splits under one file name, as caption queries and their gallery do, is no copy.
    """
    broken: list[str] = []
    names: dict[str, dict[str, str]] = defaultdict(dict)
    for split, part in dataset.items():
        sources = image_sources(part)
        with ThreadPoolExecutor(threads) as pool:
            results = tqdm(
                pool.map(_examined, sources), total=len(sources), desc=f"reading {split}", unit="image", disable=None
            )
            for file_name, (digest, problem) in zip(part["file_name"][:], results, strict=True):
                if problem is not None:
                    broken.append(problem)
                if digest is not None:
                    names[digest].setdefault(file_name, split)
    copies = [of_digest for of_digest in names.values() if len(set(of_digest.values())) > 1]
    return sorted(set(broken)), [sorted(f"{split}/{name}" for name, split in group.items()) for group in copies]


def _examined(source: ImageSource) -> tuple[str | None, str | None]:
    """(digest of the bytes, None where there are none; what is wrong with the image, None where nothing is)."""
    try:
        open_image(source)
        problem = None
    except UserError as error:
        problem = str(error)
    try:
        content = source.read() if isinstance(source, EmbeddedImage) else open(source, "rb").read()  # noqa: SIM115
    except OSError:
        return None, problem
    return hashlib.sha256(content).hexdigest(), problem


def shared_persons(dataset: Mapping[str, Dataset]) -> dict[str, int]:
    """How many person numbers two parts share, for the pairs that should share none: "train and query" -> count.

    In MSMT17 the numbers of training and test people overlap and are other people: no leak by itself.
    """
    persons = {split: set(part["person_id"][:]) for split, part in dataset.items()}
    pairs = (("train", "val"), ("train", "query"), ("train", "gallery"), ("val", "query"), ("val", "gallery"))
    return {f"{a} and {b}": len(persons[a] & persons[b]) for a, b in pairs if a in persons and b in persons}


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
        who = display_label("person", person_names(part.select(indices[:1]))[0])
        cameras = camera_names(part.select(indices))
        title = f"{split}, {who}" + (f": {captions[0]}" if captions else "")
        draw.text((GAP, top + 4), _fitted(title, width - 2 * GAP), fill=INK, font=ImageFont.load_default(13))
        top += HEAD
        for column, index in enumerate(indices):
            left = GAP + column * (CROP[0] + GAP)
            crop = ImageOps.pad(open_image(sources[split][index]), CROP, color="#eceff3")
            sheet.paste(crop, (left, top))
            text = _fitted(display_label("cam", cameras[column]), CROP[0])
            draw.text((left, top + CROP[1] + 2), text, fill=FAINT, font=ImageFont.load_default(11))
        top += CROP[1] + CAPTION + GAP
    with atomic_file(path_png) as aside:
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
