"""An approximate index for galleries that do not fit into memory. The exact search stays the default."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..retrieval.scan import Scan
from ..utils.errors import UserError
from .filters import Where
from .rows import Rows

if TYPE_CHECKING:
    from .gallery import Gallery

# Below this number of rows the training of an index has too few rows.
LEAST_ROWS = 256
# Rows of one partition, about; a search reads whole partitions.
PARTITION_ROWS = 1000


@dataclass(frozen=True)
class Index:
    """An index, and what it finds.

    Args:
        rows (`int`): Rows that it holds.
        partitions (`int`): Parts that the rows are divided into.
        probes (`int`): Parts that a search reads.
        recall (`float`): Share of the `k` nearest rows of the exact search that it finds, mean over sampled rows.
        k (`int`): Number of rows for which the recall was measured.
    """

    rows: int
    partitions: int
    probes: int
    recall: float
    k: int


def build_index(gallery: "Gallery", *, recall: float = 0.95, k: int = 10, queries: int = 200, seed: int = 0) -> Index:
    """Builds the index of a gallery, and measures what it finds.

    Rows are divided by k-means. A search compares the query with all rows of the nearest parts. Rows that are added
    later are not in the index, and every search compares them. An erasure removes the index, since it holds copies of
    the features.

    Args:
        gallery ([`Gallery`]): The gallery; its features are read into memory for the exact search.
        recall (`float`): The least recall.
        k (`int`): Number of rows for which the recall is measured.
        queries (`int`): Number of rows that are drawn as queries. They are not found themselves.
        seed (`int`): Of the draw.

    Returns:
        [`Index`]: With the smallest number of probes among the powers of two that reaches the recall.

    Raises:
        UserError: The gallery is too small, or the recall is not between 0 and 1.
    """
    if not 0 < recall <= 1:
        raise UserError(f"recall {recall}: give a share above 0, at most 1")
    rows = gallery.rows()
    if len(rows) < LEAST_ROWS:
        raise UserError(
            f"gallery {gallery.store.place}: has {len(rows)} rows, and an index needs {LEAST_ROWS}: search without one"
        )
    partitions = max(2, math.ceil(len(rows) / PARTITION_ROWS))
    with gallery.store.writer():
        gallery.store.build_index(partitions)
    drawn = np.random.default_rng(seed).permutation(len(rows))[:queries]
    exact = Scan.of(rows.features).nearest(rows.features[drawn], np.ones(len(rows), dtype=bool), k + 1)
    wanted = [_others(rows.ids[places], place, rows, k) for place, (places, _) in zip(drawn, exact, strict=True)]
    probes = 1
    while True:
        shares = []
        for place, names in zip(drawn, wanted, strict=True):
            found = gallery.store.nearest(rows.features[place], k + 1, probes)["id"].to_pylist()
            shares.append(len(names & _others(found, place, rows, k)) / len(names))
        if np.mean(shares) >= recall or probes == partitions:
            break
        probes = min(2 * probes, partitions)
    with gallery.store.writer():
        gallery.store.set_probes(probes)
    return Index(len(rows), partitions, probes, float(np.mean(shares)), k)


def shortlist(
    gallery: "Gallery", feature: np.ndarray, k: int, where: Where, without: str | None = None
) -> tuple[Rows, int]:
    """Finds the nearest rows by the index, among those that meet conditions and have not expired.

    Args:
        gallery ([`Gallery`]): The gallery.
        feature (`np.ndarray`): (D,) float32.
        k (`int`): Number of rows.
        where ([`Where`]): The conditions.
        without (`str`, *optional*): Id of a row that is left out.

    Returns:
        `tuple[Rows, int]`: At most k rows, and the number of rows that meet the conditions.

    Raises:
        UserError: There is no index.
    """
    probes = gallery.store.probes()
    if probes is None:
        raise UserError(
            f"gallery {gallery.store.place}: has no index (an erasure removes it): build it with gallery index, or "
            "search without one"
        )
    condition = where.sql() + (f" AND id != '{without}'" if without else "")
    table = gallery.store.nearest(feature, k, probes, condition).sort_by("id")
    features = np.array(table["feature"].to_pylist(), np.float32).reshape(len(table), len(feature))
    return Rows.from_table(table, features), gallery.store.count(condition)


def _others(names: Iterable[str], place: int, rows: Rows, k: int) -> set[str]:
    """Returns the first k names besides that of the query."""
    return set([name for name in names if name != rows.ids[place]][:k])
