"""The exact search over the features of a gallery, in NumPy."""

from dataclasses import dataclass

import numpy as np

from ..utils.errors import UserError
from .exact import Ranking, nearest_exact, rounding_error, scales

# Below this share of the rows, those that meet the conditions are copied.
FEW = 0.2
# Rows that are ordered again by re-ranking.
SHORTLIST = 200
CHUNK_ROWS = 65_536
# Products that are in memory at once.
BLOCK_NUMBERS = 2**24


@dataclass(frozen=True)
class Scan:
    """Features that are ready for searches.

    Args:
        features (`np.ndarray`): (N, D) float32, of any length.
        factors (`np.ndarray`): (N,) float32, 1 over the length of each, or 0.
    """

    features: np.ndarray
    factors: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> "Scan":
        """Prepares features (N, D)."""
        factors = np.empty(len(features), np.float32)
        for start in range(0, len(features), CHUNK_ROWS):
            factors[start : start + CHUNK_ROWS] = scales(features[start : start + CHUNK_ROWS])
        return cls(features, factors)

    def nearest(self, queries: np.ndarray, kept: np.ndarray, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Finds the nearest rows of each query, as `rank_gallery` does for the kept rows.

        Args:
            queries (`np.ndarray`): (Q, D) float32.
            kept (`np.ndarray`): (N,) bool, the rows to search.
            k (`int`): Number of rows.

        Returns:
            `list`: For each query at most k places in the rows, and their cosine distances in float32; nearest first,
            equal distances by place.

        Raises:
            UserError: A query has another width, or NaN or infinity.
        """
        width = self.features.shape[1]
        if queries.ndim != 2 or queries.shape[1] != width:
            raise UserError(f"query: has shape {queries.shape}, the features of the gallery have width {width}")
        if not np.isfinite(queries).all():
            raise UserError("query: its feature has NaN or infinity: embed it again, or give another image")
        features, factors, places = self.features, self.factors, None
        if kept.mean() < FEW if len(kept) else False:
            places = np.flatnonzero(kept)
            features, factors, kept = features[places], factors[places], np.ones(len(places), dtype=bool)
        own = scales(queries).astype(np.float32)
        error = float(rounding_error(width, np.array(2.0)))
        found = []
        step = max(BLOCK_NUMBERS // max(len(features), 1), 1)
        for start in range(0, len(queries), step):
            block = queries[start : start + step]
            products = features @ block.T.astype(np.float32)
            for query, scale, product in zip(block, own[start : start + step], products.T, strict=True):
                rough = 1 - product * factors * scale
                rough[~kept] = np.inf
                nearest, distances = nearest_exact(query, features.__getitem__, rough, error, k)
                found.append((nearest if places is None else places[nearest], distances))
        return found

    def ranking(self, queries: np.ndarray, k: int) -> Ranking:
        """Ranks all rows, as `rank_gallery` does.

        Args:
            queries (`np.ndarray`): (Q, D) float32.
            k (`int`): Number of rows.

        Returns:
            [`Ranking`]

        Raises:
            UserError: A query has another width, or NaN or infinity.
        """
        found = self.nearest(queries, np.ones(len(self.features), dtype=bool), k)
        ranking = Ranking.empty(len(queries), k)
        for number, (places, distances) in enumerate(found):
            ranking.indices[number, : len(places)], ranking.distances[number, : len(places)] = places, distances
        return ranking


def reranked(query: np.ndarray, shortlist: np.ndarray) -> np.ndarray:
    """Orders the nearest rows of a query by k-reciprocal re-ranking.

    Args:
        query (`np.ndarray` of shape `(D,)`): Feature.
        shortlist (`np.ndarray` of shape `(n, D)`): Features of its nearest rows, nearest first.

    Returns:
        `np.ndarray` of shape `(n,)`: Their places in the new order; equal distances keep theirs.
    """
    from .reranking import rerank_blocks  # it needs torch

    if not len(shortlist):
        return np.arange(0)
    distances = np.concatenate([block.numpy() for _, block in rerank_blocks(query[None], shortlist)])
    return np.argsort(distances[0], kind="stable")
