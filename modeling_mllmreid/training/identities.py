"""Whom the rows of the ID classifiers stand for: a number of people does not say who they are."""

import hashlib
import os

from ..data.images import EmbeddedImage, ImageSource
from .batches import TrainDataset


def identities_digest(samples: TrainDataset) -> str:
    """A digest of the training people in the order of their labels; it holds no name that could be read back.

    Of each person: the data set, the name or number, and the bytes of one image, the first by file name. Names alone
    are not enough, as people are numbered from 1 in many data sets. The order of the rows does not matter.
    """
    first: dict[int, int] = {}
    for row, label in enumerate(samples.labels):
        if label not in first or samples.file_names[row] < samples.file_names[first[label]]:
            first[label] = row
    digest = hashlib.sha256()
    for label in sorted(first):
        row = first[label]
        for part in (samples.sources[row], samples.person_names[row]):
            digest.update(part.encode(errors="surrogateescape") + b"\0")
        digest.update(hashlib.sha256(_encoded(samples.images[row])).digest())
    return digest.hexdigest()


def _encoded(source: ImageSource) -> bytes:
    if isinstance(source, EmbeddedImage):
        return source.read()
    with open(os.fspath(source), "rb") as file:
        return file.read()
