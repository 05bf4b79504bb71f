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
    """Returns the digest of one image of each person of own data, the first by file name.

    A published data set is known by its name, so its people need none.

    Args:
        splits (`Iterable[Dataset]`): splits of the data contract.

    Returns:
        `list[str]`: sorted digests.
    """
    digests = set()
    for split in splits:
        first: dict[tuple[str, str], tuple[str, ImageSource]] = {}
        for key, file_name, image in _own_images(split):
            if key not in first or file_name < first[key][0]:
                first[key] = (file_name, image)
        digests |= {image_digest(image) for _, image in first.values()}
    return sorted(digests)


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
