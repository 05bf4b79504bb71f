"""Inspection of a data set: counts, captions, broken images, copies across splits, and a contact sheet."""

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
    """Counts the images, persons, cameras, captions and words of a split.

    Args:
        split (`Dataset`): a split of the data contract.

    Returns:
        `dict[str, Any]`: the counts, which can be written as JSON.
    """
    persons, cameras = Counter(split["person_id"][:]), Counter(split["camera_id"][:])
    camera_name = names_by_camera(split)
    captions = [caption for captions in split["caption"][:] for caption in captions]
    words = [WORD.findall(caption.lower()) for caption in captions]
    unknown = cameras.pop(UNKNOWN_CAMERA, 0)
    return {
        "images": len(split),
        "persons": len(persons),
        "cameras": {camera_name[camera]: cameras[camera] for camera in sorted(cameras)},
        "images_of_unknown_camera": unknown,
        "images_of_a_person": _summary(list(persons.values())),
        "persons_by_their_images": {str(n): count for n, count in sorted(Counter(persons.values()).items())},
        "captions": len(captions),
        "words_of_a_caption": _summary([len(caption_words) for caption_words in words]),
        "vocabulary": len({word for caption_words in words for word in caption_words}),
    }


def _summary(values: list[int]) -> dict[str, float] | None:
    """Returns the minimum, median, mean and maximum; None without values."""
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
    """Finds the broken images, and the copies of one image in several splits.

    An image with the same file name in several splits is not a copy: caption queries are also in the gallery.

    Args:
        dataset (`DatasetDict`): splits of the data contract.
        threads (`int`, defaults to 8): the number of threads.

    Returns:
        `tuple[list[str], list[list[str]]]`: the error message of each broken image, and for each copied image the
        "split/file_name" of its copies.
    """
    broken: list[str] = []
    names_by_digest: dict[str, dict[str, str]] = defaultdict(dict)
    for split_name, split in dataset.items():
        sources = image_sources(split)
        with ThreadPoolExecutor(threads) as pool:
            results = tqdm(
                pool.map(_digest_and_problem, sources),
                total=len(sources),
                desc=f"reading {split_name}",
                unit="image",
                disable=None,
            )
            for file_name, (digest, problem) in zip(split["file_name"][:], results, strict=True):
                if problem is not None:
                    broken.append(problem)
                if digest is not None:
                    names_by_digest[digest].setdefault(file_name, split_name)
    copies = [split_by_name for split_by_name in names_by_digest.values() if len(set(split_by_name.values())) > 1]
    return sorted(set(broken)), [sorted(f"{split}/{name}" for name, split in group.items()) for group in copies]


def _digest_and_problem(source: ImageSource) -> tuple[str | None, str | None]:
    """Returns the digest of the bytes (None if they cannot be read) and the error message (None if the image opens)."""
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
    """Counts the person ids that two splits share, for the pairs of splits that should share none.

    A shared number is not always a leak: MSMT17 uses the same numbers for different training and test people.

    Args:
        dataset (`Mapping[str, Dataset]`): splits of the data contract by name.

    Returns:
        `dict[str, int]`: "train and query" -> the number of shared ids.
    """
    persons = {name: set(split["person_id"][:]) for name, split in dataset.items()}
    pairs = (("train", "val"), ("train", "query"), ("train", "gallery"), ("val", "query"), ("val", "gallery"))
    return {f"{a} and {b}": len(persons[a] & persons[b]) for a, b in pairs if a in persons and b in persons}


# Sizes in pixels.
CROP, GAP, CAPTION, TITLE, HISTOGRAM = (72, 144), 6, 16, 26, 96
BACKGROUND, TEXT, SMALL_TEXT, BAR = "#ffffff", "#1c2733", "#6b7785", "#3b6ea5"
NUM_BARS = 24
LONGEST_TEXT = 500


def contact_sheet(
    path_png: str | os.PathLike[str], dataset: DatasetDict, *, people: int = 4, images: int = 8, seed: int = 0
) -> None:
    """Draws the distribution of images per person for each split, and the first images of some people.

    Args:
        path_png (`str` or `os.PathLike`): the PNG file to write.
        dataset (`DatasetDict`): splits of the data contract.
        people (`int`, defaults to 4): the number of people of each split.
        images (`int`, defaults to 8): the number of images of each person.
        seed (`int`, defaults to 0): the seed that selects the people.

    Raises:
        UserError: an image is broken, or the file cannot be written.
    """
    dataset = DatasetDict({name: split for name, split in dataset.items() if len(split)})
    selected = [
        (name, indices)
        for name, split in dataset.items()
        for indices in _sample_people(split["person_id"][:], people, images, seed)
    ]
    width = 2 * GAP + images * (CROP[0] + GAP)
    height = 2 * GAP + HISTOGRAM + sum(CROP[1] + CAPTION + TITLE + GAP for _ in selected)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    panel = (width - 2 * GAP) // max(len(dataset), 1)
    for number, (name, split) in enumerate(dataset.items()):
        _histogram(draw, name, split["person_id"][:], left=GAP + number * panel, width=panel - 3 * GAP)
    sources = {name: image_sources(split) for name, split in dataset.items()}
    top = 2 * GAP + HISTOGRAM
    for name, indices in selected:
        _draw_person(sheet, draw, name, dataset[name], indices, [sources[name][index] for index in indices], top)
        top += TITLE + CROP[1] + CAPTION + GAP
    with atomic_file(path_png) as temporary:
        sheet.save(temporary, format="PNG", optimize=True, pnginfo=png_info())


def _draw_person(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    split_name: str,
    split: Dataset,
    indices: list[int],
    sources: list[ImageSource],
    top: int,
) -> None:
    """Draws a title, and the images of one person with their cameras."""
    captions = split[indices[0]]["caption"]
    person = display_label("person", person_names(split.select(indices[:1]))[0])
    title = f"{split_name}, {person}" + (f": {captions[0]}" if captions else "")
    draw.text((GAP, top + 4), _shortened(title, sheet.width - 2 * GAP), fill=TEXT, font=ImageFont.load_default(13))
    top += TITLE
    for column, (source, camera) in enumerate(zip(sources, camera_names(split.select(indices)), strict=True)):
        left = GAP + column * (CROP[0] + GAP)
        sheet.paste(ImageOps.pad(open_image(source), CROP, color="#eceff3"), (left, top))
        text = _shortened(display_label("cam", camera), CROP[0])
        draw.text((left, top + CROP[1] + 2), text, fill=SMALL_TEXT, font=ImageFont.load_default(11))


def _histogram(draw: ImageDraw.ImageDraw, split: str, person_ids: list[int], *, left: int, width: int) -> None:
    """Draws how many people have how many images. The last bar has all people with at least `NUM_BARS` images."""
    counts = Counter(min(count, NUM_BARS) for count in Counter(person_ids).values())
    last = max(counts)
    bottom, tallest, bar = GAP + HISTOGRAM - CAPTION, max(counts.values()), width / last
    small = ImageFont.load_default(11)
    draw.text((left, GAP), f"{split}: images of a person", fill=TEXT, font=ImageFont.load_default(13))
    for number, people in counts.items():
        height = max(round((HISTOGRAM - CAPTION - TITLE) * people / tallest), 1)
        x = left + (number - 1) * bar
        draw.rectangle((x, bottom - height, x + max(bar - 2, 1), bottom), fill=BAR)
    draw.text((left, bottom + 2), "1", fill=SMALL_TEXT, font=small)
    label = f"{last}{' or more' if last == NUM_BARS else ''}, highest bar {tallest:,} people"
    draw.text((left + width, bottom + 2), label, fill=SMALL_TEXT, font=small, anchor="ra")


def _sample_people(person_ids: list[int], people: int, images: int, seed: int) -> list[list[int]]:
    """Returns the indices of the first images of some people, one list per person."""
    ids = np.asarray(person_ids)
    distinct = np.unique(ids)
    drawn = np.sort(np.random.default_rng(seed).permutation(distinct)[:people])
    return [[int(row) for row in np.flatnonzero(ids == person)[:images]] for person in drawn]


def _shortened(text: str, width: int) -> str:
    """Returns the text, shortened with dots if it is wider than `width` pixels."""
    font = ImageFont.load_default(13)
    # PIL measures a single line only.
    text = " ".join(text[:LONGEST_TEXT].split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
