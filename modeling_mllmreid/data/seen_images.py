"""People of own data whom a training has seen, known again by the bytes of their images, whatever their names."""

import hashlib
import os
from collections.abc import Iterable, Mapping

from datasets import Dataset

from .contract import image_sources, person_names
from .images import EmbeddedImage, ImageSource
from .load import OWN_DATA_READERS
from .readers import READERS

DIGEST_CHARACTERS = 16
# Of each person: single images are deleted or saved again, and the person is still known.
IMAGES_OF_A_PERSON = 8


def image_bytes(source: ImageSource) -> bytes:
    """Returns the encoded bytes of an image. Raises OSError for a file that cannot be read."""
    if isinstance(source, EmbeddedImage):
        return source.read()
    with open(os.fspath(source), "rb") as file:
        return file.read()


def image_digest(source: ImageSource) -> str:
    """Returns the start of the SHA-256 of an image's bytes, from which neither picture nor name can be read."""
    return hashlib.sha256(image_bytes(source)).hexdigest()[:DIGEST_CHARACTERS]


def people_digests(splits: Iterable[Dataset]) -> list[str]:
    """Returns the digests of the first images by file name of each person of own data, `IMAGES_OF_A_PERSON` at most.

    A published data set is known by its name, so its people need none.

    Args:
        splits (`Iterable[Dataset]`): splits of the data contract.

    Returns:
        `list[str]`: sorted digests.
    """
    images: dict[tuple[str, str], list[tuple[str, ImageSource]]] = {}
    for split in splits:
        for key, file_name, image in _own_images(split):
            images.setdefault(key, []).append((file_name, image))
    first = (sorted(named, key=lambda row: row[0])[:IMAGES_OF_A_PERSON] for named in images.values())
    return sorted({image_digest(image) for named in first for _, image in named})


def people_seen(splits: Mapping[str, Dataset], digests: Iterable[str]) -> list[str]:
    """Returns the people of own data that have an image among those of `people_digests`, by name.

    Args:
        splits (`Mapping[str, Dataset]`): splits of the data contract, such as query and gallery.
        digests (`Iterable[str]`): digests of the people of a training.

    Returns:
        `list[str]`: sorted names.
    """
    known = frozenset(digests)
    if not known:
        return []
    images = (row for split in splits.values() for row in _own_images(split))
    return sorted({name for (_, name), _, image in images if image_digest(image) in known})


def _own_images(split: Dataset) -> Iterable[tuple[tuple[str, str], str, ImageSource]]:
    """Yields the source and name of the person, the file name and the image of each row of own data."""
    published = READERS.keys() - OWN_DATA_READERS.keys()
    columns = (split["source"][:], person_names(split), split["file_name"][:], image_sources(split))
    for source, person, file_name, image in zip(*columns, strict=True):
        if source not in published:
            yield (source, person), file_name, image
