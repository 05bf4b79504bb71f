"""What is in a data set: counts, captions, broken images and copies across its parts."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm

from ..errors import UserError
from .columns import UNKNOWN_CAMERA, cameras_called, image_sources
from .images import EmbeddedImage, ImageSource, open_image

WORD = re.compile(r"[^\W_]+")


def describe(split: Dataset) -> dict[str, Any]:
    """Counts of a split: images, persons, cameras, images of a person, captions and their words; JSON-able."""
    persons, cameras = Counter(split["person_id"][:]), Counter(split["camera_id"][:])
    called = cameras_called(split)
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
            results = tqdm(pool.map(_examined, sources), total=len(sources), desc=f"reading {split}", unit="image")
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
