"""Exact distances of the nearest images, in NumPy alone: they depend on the two features and on nothing else.

A product of float32 matrices finds the candidates of a query, with a bound of its rounding error. Their distances are
then computed in float64 and rounded to float32. So a search gives the same distances and the same order with any
library of matrix products, in any gallery, and for any part of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

TINY = 1e-300  # features of at most this length are zero: they have no direction
# Rows whose float64 copies stay in the processor's cache.
CHUNK_NUMBERS = 2**18


@dataclass(frozen=True)
class Ranking:
    """The k nearest gallery images of each query, nearest first.

    Args:
        indices (`np.ndarray`): (Q, k) int64 gallery indices; -1 after the last image of a query that has fewer than k.
        distances (`np.ndarray`): (Q, k) float32 distances of these images; infinity for index -1.
    """

    indices: np.ndarray
    distances: np.ndarray

    @classmethod
    def empty(cls, queries: int, k: int) -> "Ranking":
        """Returns a ranking without any image, to be filled in."""
        return cls(np.full((queries, k), -1, dtype=np.int64), np.full((queries, k), np.inf, dtype=np.float32))


def scales(features: np.ndarray, metric: str = "cosine") -> np.ndarray:
    """Returns the factor (n,) of each row (n, D): 1 over its length for the cosine, 0 for a zero row, else 1."""
    if metric != "cosine":
        return np.ones(len(features))
    rows = features.astype(np.float64)
    lengths = np.sqrt((rows * rows).sum(1))
    factors: np.ndarray = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > TINY)
    return factors


def exact_distances(query: np.ndarray, rows: np.ndarray, metric: str = "cosine") -> np.ndarray:
    """Computes the distances of one feature to others.

    Args:
        query (`np.ndarray` of shape `(D,)`): Feature of any float type.
        rows (`np.ndarray` of shape `(n, D)`): Other features.
        metric (`str`): "cosine", which is 1 - dot product of the L2-normalised features, or "euclidean", not squared. A
            zero feature has the cosine distance 1 to all others.

    Returns:
        `np.ndarray` of shape `(n,)`: float32, rounded from float64. Equal features have equal distances, and the
        distance of a to b is that of b to a.
    """
    distances = np.empty(len(rows), np.float32)
    own = scales(query[None], metric)[0]
    point = query.astype(np.float64) * own
    step = max(CHUNK_NUMBERS // max(len(query), 1), 1)
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step]
        factors = scales(chunk, metric)
        difference = chunk * factors[:, None] - point
        squares = (difference * difference).sum(1)
        if metric == "cosine":
            squares = squares / 2 + ((factors == 0).astype(float) + float(own == 0)) / 2
        else:
            squares = np.sqrt(squares)
        distances[start : start + step] = squares
    return distances


def rounding_error(width: int, lengths: np.ndarray) -> np.ndarray:
    """Bounds the error of a half squared distance |a|^2/2 + |b|^2/2 - ab that is computed in float32.

    Args:
        width (`int`): Numbers of a feature.
        lengths (`np.ndarray`): The sum of the lengths of both features.

    Returns:
        `np.ndarray`: Largest possible error, in any order of summation, with the rounding of the features to
        float32 (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
    """
    bounds: np.ndarray = (width + 8) * 2.0**-25 * lengths * lengths
    return bounds


def nearest_exact(
    query: np.ndarray,
    take: Callable[[np.ndarray], np.ndarray],
    rough: np.ndarray,
    error: float,
    k: int,
    metric: str = "cosine",
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the nearest rows of a query.

    Args:
        query (`np.ndarray` of shape `(D,)`): Feature.
        take (`Callable`): Maps indices (n,) to the features (n, D) of these rows of the gallery.
        rough (`np.ndarray` of shape `(G,)`): Half the squared distances, with an error of at most `error`; infinity for
            rows that are left out.
        error (`float`): See `rounding_error`.
        k (`int`): Number of rows to find.
        metric (`str`): As in `exact_distances`.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: At most k indices, and their distances (float32), nearest first. Of equal
        distances the lower index comes first.
    """
    candidates = np.flatnonzero(rough < np.inf)
    if k < len(candidates):
        candidates = np.flatnonzero(rough <= candidate_limit(np.partition(rough, k - 1)[k - 1], error))
    return exact_order(query, take, candidates, k, metric)


def candidate_limit(bound: Any, error: Any) -> Any:
    """Returns the rough distance up to which an image may be among the k nearest.

    Args:
        bound (`float`, `np.ndarray` or `Tensor`): The rough distance of the k-th nearest image.
        error (`float`, `np.ndarray` or `Tensor`): See `rounding_error`.
    """
    # Twice the error; the rest is the rounding of an exact distance to float32, which can make two of them equal.
    return bound + 2 * error + 2.0**-22 * abs(bound)


def exact_order(
    query: np.ndarray, take: Callable[[np.ndarray], np.ndarray], candidates: np.ndarray, k: int, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Orders candidates (n,), ascending indices, by their exact distances; as `nearest_exact` otherwise."""
    distances = exact_distances(query, take(candidates), metric)
    order = np.argsort(distances, kind="stable")[:k]
    return candidates[order], distances[order]
