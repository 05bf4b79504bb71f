"""The matching rule: which gallery images show a query's person, and which of them are dropped for that query."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Union

import numpy as np

from ..utils.errors import UserError
from ..utils.tensors import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

Ids = Union[np.ndarray, "Tensor", Sequence[int], Sequence[str]]
UNKNOWN = -1
UNKNOWN_NAMES = ("-1", "")


class PersonImages(NamedTuple):
    """The gallery images of the persons of n queries, in M columns: as many as the person with most images has.

    Args:
        indices (`np.ndarray`): (n, M) int64 gallery indices, ascending; behind a row's last image its first one again.
        there (`np.ndarray`): (n, M) bool, whether there is an image.
        kept (`np.ndarray`): (n, M) bool, whether there is one that the matching rule keeps.
    """

    indices: np.ndarray
    there: np.ndarray
    kept: np.ndarray


class SamePerson:
    """Matches gallery images to queries by person, and drops those of the query's camera or clothes.

    A gallery image of the query's person is dropped if it also has the query's camera (the rule of Market-1501), or the
    query's clothes (the rule of clothes-changing data sets). Ids are integers or strings, of the same kind in queries
    and gallery. -1 (as a string `"-1"` or `""`) is an unknown camera or unknown clothes and equals nothing.

    Args:
        query_person_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`): (Q,) person ids.
        gallery_person_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`): (G,) person ids.
        query_camera_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`, *optional*): (Q,) camera ids. Without them
            no image is dropped for its camera.
        gallery_camera_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`, *optional*): (G,) camera ids.
        query_clothes_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`, *optional*): (Q,) clothes ids. Without them
            no image is dropped for its clothes.
        gallery_clothes_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`, *optional*): (G,) clothes ids.

    Attributes:
        query_persons (`np.ndarray`): (Q,) int64 person numbers; string ids are numbered in sorted order.
        gallery_persons (`np.ndarray`): (G,) int64 person numbers.
        excluded (`list[tuple[np.ndarray, np.ndarray]]`): int64 query and gallery ids of each column that drops images.

    Raises:
        UserError: if ids are not lists of integers or strings, differ in kind, do not fit the images, or if only
            one of query and gallery has cameras or clothes.

    Example:
        >>> from modeling_mllmreid import SamePerson
        >>> rule = SamePerson(
        ...     query_person_ids=[7],
        ...     gallery_person_ids=[7, 3, 7],
        ...     query_camera_ids=[0],
        ...     gallery_camera_ids=[0, 0, 1],
        ... )
        >>> same, dropped = rule.gallery_images(0)
        >>> same.tolist(), dropped.tolist()
        ([0, 2], [True, False])

    Source: Zheng et al. 2015 (cameras); Yang et al. 2021 (clothes).
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
                    f"{missing}: missing while the other split has them: give both, or neither for no {kind} filter"
                )
        self._by_person = np.argsort(self.gallery_persons, kind="stable")
        grouped = self.gallery_persons[self._by_person]
        self._first = np.searchsorted(grouped, self.query_persons, side="left")
        self._end = np.searchsorted(grouped, self.query_persons, side="right")

    def gallery_images(self, query: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the gallery images of one query's person.

        Args:
            query (`int`): index of the query.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: gallery indices (n,), ascending, and which of them are dropped, (n,) bool.
        """
        same = self._by_person[self._first[query] : self._end[query]]
        dropped = np.zeros(len(same), dtype=bool)
        for query_ids, gallery_ids in self.excluded:
            if query_ids[query] != UNKNOWN:
                dropped |= gallery_ids[same] == query_ids[query]
        return same, dropped

    def image_counts(self, queries: slice) -> np.ndarray:
        """Returns the number of gallery images of each query's person, kept or dropped, (n,) int64."""
        counts: np.ndarray = self._end[queries] - self._first[queries]
        return counts

    def block_images(self, queries: slice) -> PersonImages:
        """Returns the gallery images of the persons of several queries.

        Args:
            queries (`slice`): the queries.

        Returns:
            `PersonImages`: a row for each query.
        """
        first, counts = self._first[queries], self.image_counts(queries)
        columns = np.arange(counts.max(initial=0))
        there = columns < counts[:, None]
        places = first[:, None] + np.where(there, columns, 0)
        # A person without images may have its place behind the last one.
        indices = self._by_person[np.minimum(places, len(self._by_person) - 1)]
        kept = there.copy()
        for query_ids, gallery_ids in self.excluded:
            own = query_ids[queries, None]
            kept &= (own == UNKNOWN) | (gallery_ids[indices] != own)
        return PersonImages(indices, there, kept)


def _numbered(
    query_ids: Ids, gallery_ids: Ids, name: str, unknown: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Converts ids to int64: integers stay, strings become their place in sorted order, unknown ones -1."""
    query, gallery = _checked_ids(query_ids, f"query_{name}"), _checked_ids(gallery_ids, f"gallery_{name}")
    if query.dtype.kind == gallery.dtype.kind == "i":
        return query, gallery
    if query.size and gallery.size and query.dtype.kind != gallery.dtype.kind:
        raise UserError(f"{name}: {query.dtype} in the queries, {gallery.dtype} in the gallery: use one kind for both")
    names, numbers = np.unique(np.concatenate([query.astype(str), gallery.astype(str)]), return_inverse=True)
    numbers[np.isin(names, unknown)[numbers]] = UNKNOWN
    return numbers[: len(query)], numbers[len(query) :]


def _checked_ids(ids: Ids, name: str, count: int | None = None) -> np.ndarray:
    """Converts ids to an array (N,) of int64 or strings, and checks N against the count if there is one."""
    array = ids.detach().cpu().numpy() if is_tensor(ids) else np.asarray(ids)
    if array.dtype.kind == "O" and all(isinstance(value, str) for value in array.flat):
        array = array.astype(str)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iuU"):
        raise UserError(f"{name}: {array.dtype} of shape {array.shape} is no list of ids: give one number per image")
    if count is not None and len(array) != count:
        raise UserError(f"{name}: {len(array)} ids for {count} images: give one per image")
    return array if array.dtype.kind == "U" else array.astype(np.int64)
