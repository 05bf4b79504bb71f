"""Validation people are taken out of the training part, and training labels are made: nothing here is stored."""

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
from datasets import Dataset

from ..errors import UserError
from .columns import UNKNOWN_CAMERA

# The triplet loss needs a second person.
MIN_TRAIN_IDENTITIES = 2


def label_mapping(person_ids: Iterable[int]) -> dict[int, int]:
    """Labels 0..n-1 of the person ids, in sorted order."""
    return {person_id: label for label, person_id in enumerate(sorted(set(person_ids)))}


def split_validation(train: Dataset, *, val_identities: int, seed: int) -> tuple[Dataset, Dataset]:
    """(train, val) without a person in common: `val_identities` people drawn by the seed, whatever the rows' order.

    Raises UserError for an empty split, and for a number of people below 1 or that leaves fewer than two to train on.
    """
    if not len(train):
        raise UserError("the training split is empty: give a data set with training images")
    person_ids = np.asarray(train["person_id"][:], dtype=np.int64)
    identities = np.unique(person_ids)
    most = len(identities) - MIN_TRAIN_IDENTITIES
    if not 1 <= val_identities <= most:
        mend = f"give 1 to {most}" if most >= 1 else "give a training split with more people"
        raise UserError(f"val_identities is {val_identities} of {len(identities)} people in the training split: {mend}")
    chosen = np.random.default_rng(seed).permutation(identities)[:val_identities]
    in_val = np.isin(person_ids, chosen)
    return train.select(np.flatnonzero(~in_val)), train.select(np.flatnonzero(in_val))


def query_gallery_parts(val: Dataset, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """(query, gallery) of a validation split: one image per person and camera asks, the rest is the gallery.

    An image becomes a query only where that leaves every query of the person a gallery image from another camera; an
    unknown camera (-1) is another camera to all, itself included. Drawn by the seed, whatever the rows' order.
    Raises UserError where no image can be a query.
    """
    columns = (val["person_id"][:], val["camera_id"][:], val["file_name"][:])
    rows = sorted(range(len(val)), key=lambda row: tuple(column[row] for column in columns))
    person_ids, camera_ids, _ = columns
    of_person: dict[int, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        of_person[person_ids[row]][camera_ids[row]].append(row)
    rng = np.random.default_rng(seed)
    queries: set[int] = set()
    for of_camera in of_person.values():
        left = Counter({camera: len(images) for camera, images in of_camera.items()})
        asking: list[int] = []
        # Cameras with many images first: they can spare one.
        for camera in sorted(of_camera, key=lambda camera: (-len(of_camera[camera]), camera)):
            left[camera] -= 1
            if all(_has_match(other, left) for other in [*asking, camera]):
                asking.append(camera)
                queries.add(of_camera[camera][rng.integers(len(of_camera[camera]))])
            else:
                left[camera] += 1
    if not queries:
        raise UserError(
            "the validation split has no person with images of two cameras: take more validation people, or give "
            f"camera_id {UNKNOWN_CAMERA} to all images where cameras are unknown"
        )
    return val.select(sorted(queries)), val.select([row for row in range(len(val)) if row not in queries])


def _has_match(camera: int, gallery: Counter[int]) -> bool:
    return any(n > 0 and (other != camera or camera == UNKNOWN_CAMERA) for other, n in gallery.items())
