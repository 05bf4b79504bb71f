"""The nearest gallery images of each query, and the rule that says which gallery images a query may not see."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ..errors import UserError
from .distances import Features, distance_blocks

Ids = np.ndarray | Tensor | Sequence[int] | Sequence[str]

UNKNOWN = -1


@dataclass(frozen=True)
class Ranking:
    """The k nearest gallery images of each query, nearest first.

    indices: (Q, k) int64 into the gallery, -1 where a row is short; distances: (Q, k) float32, infinity there.
    """

    indices: np.ndarray
    distances: np.ndarray


class SamePerson:
    """The gallery images of each query's person, and which of them are dropped for having the query's camera too.

    Ids are integers or strings, (Q,) and (G,), of one kind on both sides. Camera -1 is unknown and equals no camera,
    itself included; without cameras nothing is dropped. Clothes ids in the cameras' place give the rule of the
    clothes-changing data sets.
    query_persons: (Q,) and gallery_persons: (G,) int64, the persons of both sides numbered in sorted order.
    Raises UserError for ids of another kind or of two kinds, and for cameras of one side alone.
    """

    def __init__(
        self,
        query_person_ids: Ids,
        gallery_person_ids: Ids,
        query_camera_ids: Ids | None = None,
        gallery_camera_ids: Ids | None = None,
    ):
        self.query_persons, self.gallery_persons = _numbered(query_person_ids, gallery_person_ids, "person_ids")
        if (query_camera_ids is None) != (gallery_camera_ids is None):
            missing = "query_camera_ids" if query_camera_ids is None else "gallery_camera_ids"
            raise UserError(f"{missing}: missing while the other side has cameras: give both, or neither for no filter")
        self.query_cameras = self.gallery_cameras = None
        if query_camera_ids is not None and gallery_camera_ids is not None:
            _checked_ids(query_camera_ids, "query_camera_ids", len(self.query_persons))
            _checked_ids(gallery_camera_ids, "gallery_camera_ids", len(self.gallery_persons))
            self.query_cameras, self.gallery_cameras = _numbered(query_camera_ids, gallery_camera_ids, "camera_ids")
        self._by_person = np.argsort(self.gallery_persons, kind="stable")
        grouped = self.gallery_persons[self._by_person]
        self._first = np.searchsorted(grouped, self.query_persons, side="left")
        self._end = np.searchsorted(grouped, self.query_persons, side="right")

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """For one query row: gallery indices of its person (n,), ascending, and which of them are dropped (n,) bool."""
        same = self._by_person[self._first[query] : self._end[query]]
        if self.query_cameras is None or self.gallery_cameras is None or self.query_cameras[query] == UNKNOWN:
            return same, np.zeros(len(same), dtype=bool)
        return same, self.gallery_cameras[same] == self.query_cameras[query]


def rank_gallery(
    query: Features,
    gallery: Features,
    k: int,
    *,
    query_person_ids: Ids | None = None,
    gallery_person_ids: Ids | None = None,
    query_camera_ids: Ids | None = None,
    gallery_camera_ids: Ids | None = None,
    metric: str = "cosine",
    block_size: int | None = None,
) -> Ranking:
    """The k nearest gallery images of each query; of equal distances the lower gallery index comes first.

    query: (Q, D), gallery: (G, D), as in `distance_blocks`. With person and camera ids, images of the query's person
    AND camera are left out, as in the metrics; a search needs no ids.
    Raises UserError for k below 1, for bad features, and for ids that do not fit them.
    """
    if k < 1:
        raise UserError(f"k: {k} is not a number of images: use 1 or more")
    blocks = distance_blocks(query, gallery, metric=metric, block_size=block_size)
    rule = None
    if query_person_ids is not None and gallery_person_ids is not None:
        _checked_ids(query_person_ids, "query_person_ids", len(query))
        _checked_ids(gallery_person_ids, "gallery_person_ids", len(gallery))
        rule = SamePerson(query_person_ids, gallery_person_ids, query_camera_ids, gallery_camera_ids)
    elif any(ids is not None for ids in (query_person_ids, gallery_person_ids, query_camera_ids, gallery_camera_ids)):
        raise UserError(
            "person ids: missing on one side or both: give query_person_ids and gallery_person_ids, or no ids"
        )
    indices = np.full((len(query), k), -1, dtype=np.int64)
    distances = np.full((len(query), k), np.inf, dtype=np.float32)
    for rows, block in blocks:
        for number, row in enumerate(block.cpu().numpy(), start=rows.start):
            if rule is not None:
                same, dropped = rule.of(number)
                row[same[dropped]] = np.inf
            nearest = nearest_in_row(row, k)
            indices[number, : len(nearest)] = nearest
            distances[number, : len(nearest)] = row[nearest]
    return Ranking(indices, distances)


def nearest_in_row(row: np.ndarray, k: int) -> np.ndarray:
    """Indices (at most k,) of the smallest distances of a row (G,), ascending, ties by index, without infinite ones."""
    candidates = np.flatnonzero(row <= np.partition(row, k - 1)[k - 1]) if k < len(row) else np.arange(len(row))
    candidates = candidates[row[candidates] < np.inf]
    return candidates[np.argsort(row[candidates], kind="stable")[:k]]


def _numbered(query_ids: Ids, gallery_ids: Ids, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' ids as int64: integers as they are, strings by their place in sorted order."""
    query, gallery = _checked_ids(query_ids, f"query_{name}"), _checked_ids(gallery_ids, f"gallery_{name}")
    if query.dtype.kind == gallery.dtype.kind == "i":
        return query, gallery
    if query.size and gallery.size and query.dtype.kind != gallery.dtype.kind:
        raise UserError(
            f"{name}: {query.dtype} in the queries, {gallery.dtype} in the gallery: give one kind on both sides"
        )
    _, numbers = np.unique(np.concatenate([query.astype(str), gallery.astype(str)]), return_inverse=True)
    return numbers[: len(query)], numbers[len(query) :]


def _checked_ids(ids: Ids, name: str, count: int | None = None) -> np.ndarray:
    """The ids as (N,) int64 or strings, N checked against the count where one is given."""
    array = ids.detach().cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.flat):
        array = array.astype(str)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuU"):
        raise UserError(f"{name}: {array.dtype} of shape {array.shape} is no list of ids: give one number per image")
    if count is not None and len(array) != count:
        raise UserError(f"{name}: {len(array)} ids for {count} images: give one per image")
    return array if array.dtype.kind == "U" else array.astype(np.int64)
