"""The rule that says which gallery images show a query's person, and which of them the query may not see."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..utils.errors import UserError

Ids = np.ndarray | Tensor | Sequence[int] | Sequence[str]
UNKNOWN = -1
UNKNOWN_NAMES = ("-1", "")


class SamePerson:
    """The gallery images of each query's person, and which of them are dropped for the query's camera or clothes.

    Ids are integers or strings, (Q,) and (G,), of one kind on both sides. Camera -1 (as a string "-1" or "") is unknown
    and equals no camera, itself included; without cameras nothing is dropped for them. The same holds for clothes: with
    their ids, images of the query's person in the query's clothes are dropped, which is the rule of the
    clothes-changing data sets.
    query_persons: (Q,) and gallery_persons: (G,) int64, the persons of both sides numbered in sorted order.
    excluded: (query, gallery) int64 ids of each column that drops images.
    Raises UserError for ids of another kind or of two kinds, and for cameras or clothes of one side alone.
    """

    def __init__(
        self,
        query_person_ids: Ids,
        gallery_person_ids: Ids,
        query_camera_ids: Ids | None = None,
        gallery_camera_ids: Ids | None = None,
        *,
        query_clothes_ids: Ids | None = None,
        gallery_clothes_ids: Ids | None = None,
    ):
        self.query_persons, self.gallery_persons = _numbered(query_person_ids, gallery_person_ids, "person_ids")
        self.excluded: list[tuple[np.ndarray, np.ndarray]] = []
        for name, query_ids, gallery_ids in (
            ("camera_ids", query_camera_ids, gallery_camera_ids),
            ("clothes_ids", query_clothes_ids, gallery_clothes_ids),
        ):
            if query_ids is not None and gallery_ids is not None:
                _checked_ids(query_ids, f"query_{name}", len(self.query_persons))
                _checked_ids(gallery_ids, f"gallery_{name}", len(self.gallery_persons))
                self.excluded.append(_numbered(query_ids, gallery_ids, name, unknown=UNKNOWN_NAMES))
            elif query_ids is not None or gallery_ids is not None:
                missing, kind = f"{'query' if query_ids is None else 'gallery'}_{name}", name.removesuffix("_ids")
                raise UserError(
                    f"{missing}: missing while the other side has them: give both, or neither for no {kind} filter"
                )
        self._by_person = np.argsort(self.gallery_persons, kind="stable")
        grouped = self.gallery_persons[self._by_person]
        self._first = np.searchsorted(grouped, self.query_persons, side="left")
        self._end = np.searchsorted(grouped, self.query_persons, side="right")

    def of(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """For one query row: gallery indices of its person (n,), ascending, and which of them are dropped (n,) bool."""
        same = self._by_person[self._first[query] : self._end[query]]
        dropped = np.zeros(len(same), dtype=bool)
        for of_query, of_gallery in self.excluded:
            if of_query[query] != UNKNOWN:
                dropped |= of_gallery[same] == of_query[query]
        return same, dropped


def _numbered(
    query_ids: Ids, gallery_ids: Ids, name: str, unknown: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Both sides' ids as int64: integers as they are, strings by their place in sorted order, unknown ones -1."""
    query, gallery = _checked_ids(query_ids, f"query_{name}"), _checked_ids(gallery_ids, f"gallery_{name}")
    if query.dtype.kind == gallery.dtype.kind == "i":
        return query, gallery
    if query.size and gallery.size and query.dtype.kind != gallery.dtype.kind:
        raise UserError(
            f"{name}: {query.dtype} in the queries, {gallery.dtype} in the gallery: give one kind on both sides"
        )
    names, numbers = np.unique(np.concatenate([query.astype(str), gallery.astype(str)]), return_inverse=True)
    numbers[np.isin(names, unknown)[numbers]] = UNKNOWN
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
