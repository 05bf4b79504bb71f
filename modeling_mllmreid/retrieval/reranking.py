"""Better rankings: sparse k-reciprocal re-ranking, and alpha query expansion."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError
from .distances import Features, all_points, distance_blocks, half_square_blocks
from .ranking import nearest_in_row, rank_gallery

# Rows that are worked on at once, and pairs of features that are compared at once.
ROWS, PAIRS = 1024, 2048


class _Sparse(NamedTuple):
    """A sparse matrix by rows: row i holds `values` at `columns` from starts[i] to starts[i + 1], columns ascending."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def rows(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where the entries of these rows lie (n,), row after row, and how many each row has (len(numbers),)."""
        counts = self.starts[numbers + 1] - self.starts[numbers]
        before = np.cumsum(counts) - counts
        return np.arange(counts.sum()) + np.repeat(self.starts[numbers] - before, counts), counts


def rerank_blocks(
    query: Features,
    gallery: Features,
    *,
    k1: int = 20,
    k2: int = 6,
    lambda_value: float = 0.3,
    metric: str = "cosine",
    block_size: int | None = None,
) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, re-ranked distances of these query rows to the gallery (rows, G) float32), as `distance_blocks`.

    query: (Q, D) and gallery: (G, D). With N = Q + G images of both sides and their squared Euclidean distances (of the
    L2-normalised features where metric is "cosine"), each row divided by its maximum: the k1 + 1 nearest of an image,
    itself among them, count where it is among theirs; the sets so found within round(k1 / 2) + 1 of each of these are
    joined where more than two thirds of them are in already; the weights exp(-distance) of the set, of sum 1, are
    averaged over the k2 nearest; the result is (1 - lambda_value) * Jaccard distance + lambda_value * distance.
    Of equal distances the lower index is nearer, queries first. Memory: a few thousand bytes an image.
    Raises UserError for k1 or k2 below 1, lambda_value outside 0 to 1, and as `distance_blocks` does.
    Source: Zhong et al. 2017.
    """
    if k1 < 1 or k2 < 1:
        raise UserError(f"k1 {k1}, k2 {k2}: not numbers of neighbours: use 1 or more")
    if not 0 <= lambda_value <= 1:
        raise UserError(f"lambda_value: {lambda_value} is no share: use 0 (Jaccard alone) to 1 (no re-ranking)")
    blocks = distance_blocks(query, gallery, metric=metric, block_size=block_size)
    both = all_points(metric, query, gallery)
    return _blocks(blocks, both, len(query), k1, k2, lambda_value, metric)


def _blocks(
    blocks: Iterator[tuple[slice, Tensor]], both: Tensor, queries: int, k1: int, k2: int, share: float, metric: str
) -> Iterator[tuple[slice, Tensor]]:
    """The work of `rerank_blocks` over checked arguments."""
    if not len(both):
        return
    neighbours, farthest = _neighbours(both, max(k1 + 1, k2))
    weights = _weights(both, neighbours, farthest, k1)
    if k2 > 1:
        weights = _averaged(weights, neighbours[:, :k2])
    by_column = _transposed(weights, queries, len(both))
    for rows, block in blocks:
        distances = _squared(block, metric).cpu().numpy() * (share / farthest[rows, None])
        for number, row in enumerate(distances, start=rows.start):
            shared = _shared_weight(weights, by_column, number, len(row))
            row += (1 - share) * (1 - shared / (2 - shared))
        yield rows, torch.from_numpy(distances)


def _squared(block: Tensor, metric: str) -> Tensor:
    """Squared Euclidean distances from a block: the cosine distance of unit vectors is half of theirs."""
    return 2 * block if metric == "cosine" else block.square()


def _neighbours(both: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest images of each of the N images, (N, count) int64, and its largest squared distance (N,) float32."""
    size = len(both)
    neighbours = np.empty((size, min(count, size)), dtype=np.int64)
    farthest = np.empty(size, dtype=np.float32)
    for rows, block in half_square_blocks(both):
        distances = block.mul_(2).numpy()
        farthest[rows] = distances.max(1)
        for number, row in enumerate(distances, start=rows.start):
            neighbours[number] = nearest_in_row(row, neighbours.shape[1])
    return neighbours, np.where(farthest > 0, farthest, 1)


def _weights(both: Tensor, neighbours: np.ndarray, farthest: np.ndarray, k1: int) -> _Sparse:
    """The weights exp(-distance / farthest) of each image's expanded k-reciprocal set, of sum 1 in each row."""
    wide, narrow = neighbours[:, : k1 + 1], neighbours[:, : round(k1 / 2) + 1]
    size = len(neighbours)
    parts = range(0, size, ROWS)
    mutual = np.concatenate([_mutual(wide, np.arange(i, min(i + ROWS, size))) for i in parts])
    mutual_narrow = np.concatenate([_mutual(narrow, np.arange(i, min(i + ROWS, size))) for i in parts])
    keys = np.concatenate(
        [_expanded(wide[i : i + ROWS], mutual[i : i + ROWS], narrow, mutual_narrow) + i * size for i in parts]
    )
    rows, columns = np.divmod(keys, size)
    values = np.exp(-_pair_squares(both.numpy(), rows, columns) / farthest[rows])
    values /= np.bincount(rows, weights=values, minlength=size)[rows]
    starts = np.searchsorted(rows, np.arange(size + 1))
    return _Sparse(starts, columns.astype(np.int32), values.astype(np.float32))


def _pair_squares(features: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared distances of pairs of images, (n,) float32: of features[rows] and features[columns]."""
    squares = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), PAIRS):
        some = slice(start, start + PAIRS)
        difference = features[rows[some]] - features[columns[some]]
        squares[some] = np.einsum("ij,ij->i", difference, difference)
    return squares


def _mutual(neighbours: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Which neighbours (n, k) of these images have the image among their own neighbours, bool."""
    return (neighbours[neighbours[numbers]] == numbers[:, None, None]).any(2)


def _expanded(wide: np.ndarray, mutual: np.ndarray, narrow: np.ndarray, mutual_narrow: np.ndarray) -> np.ndarray:
    """The expanded sets of n images as ascending, distinct keys: (row from 0) * N + member.

    wide, mutual: (n, k1 + 1), of these images; narrow, mutual_narrow: (N, round(k1 / 2) + 1), of all.
    """
    members = np.where(mutual, wide, -1)
    theirs, in_theirs = narrow[wide], mutual_narrow[wide] & mutual[:, :, None]
    inside = np.zeros_like(in_theirs)
    for place in range(members.shape[1]):
        inside |= theirs == members[:, place, None, None]
    joined = 3 * (inside & in_theirs).sum(2) > 2 * in_theirs.sum(2)
    in_theirs &= joined[:, :, None]
    row = np.arange(len(wide))[:, None] * len(narrow)
    return np.unique(np.concatenate([(wide + row)[mutual], (theirs + row[:, :, None])[in_theirs]]))


def _averaged(weights: _Sparse, nearest: np.ndarray) -> _Sparse:
    """Each row replaced by the mean of the rows of its nearest images (N, k2): the local query expansion."""
    size, parts = len(nearest), []
    for start in range(0, size, ROWS):
        some = nearest[start : start + ROWS]
        places, counts = weights.rows(some.ravel())
        row = np.repeat(np.repeat(np.arange(start, start + len(some)), some.shape[1]), counts)
        keys = row * size + weights.columns[places]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        sums = np.add.reduceat(weights.values[places][order].astype(np.float64), first)
        parts.append((keys[first], (sums / some.shape[1]).astype(np.float32)))
    rows, columns = np.divmod(np.concatenate([keys for keys, _ in parts]), size)
    starts = np.searchsorted(rows, np.arange(size + 1))
    return _Sparse(starts, columns.astype(np.int32), np.concatenate([values for _, values in parts]))


def _transposed(weights: _Sparse, first: int, size: int) -> _Sparse:
    """The gallery's rows, those from `first` on, by columns: for each image who has weight on it, gallery from 0."""
    places = slice(weights.starts[first], None)
    columns = weights.columns[places]
    order = np.argsort(columns, kind="stable")
    counts = np.diff(weights.starts[first:])
    rows = np.repeat(np.arange(size - first, dtype=np.int32), counts)
    starts = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=size))])
    return _Sparse(starts, rows[order], weights.values[places][order])


def _shared_weight(weights: _Sparse, by_column: _Sparse, number: int, gallery_size: int) -> np.ndarray:
    """Sum over all images of the smaller of the query's and each gallery image's weight, (G,) float64."""
    own = slice(weights.starts[number], weights.starts[number + 1])
    places, counts = by_column.rows(weights.columns[own])
    smaller = np.minimum(by_column.values[places], np.repeat(weights.values[own], counts))
    return np.bincount(by_column.columns[places], weights=smaller, minlength=gallery_size)


def expand_queries(query: Features, gallery: Features, *, k: int = 10, alpha: float = 3.0) -> np.ndarray:
    """Expanded query features, (Q, D) float32 and L2-normalised: query + the sum of similarity**alpha * neighbour.

    query: (Q, D) and gallery: (G, D), as in `distance_blocks`; similarity is the cosine, negative ones count as 0; the
    neighbours are the k nearest gallery images, whoever they show. alpha 0 is plain average query expansion.
    Raises UserError for k below 1, a negative alpha, and bad features.
    Source: Radenovic et al. 2018.
    """
    if alpha < 0:
        raise UserError(f"alpha: {alpha} is negative: use 0 (plain average) or more")
    ranking = rank_gallery(query, gallery, k)
    rows = _unit(query)
    for row, near, distances in zip(rows, ranking.indices, ranking.distances, strict=True):
        found = near >= 0
        weights = (1 - torch.from_numpy(distances[found]).double()).clamp(min=0) ** alpha
        row += weights @ _unit(gallery[near[found]])
    return F.normalize(rows, dim=1).float().numpy()


def _unit(features: Features) -> Tensor:
    """The features as a new float64 tensor on the CPU, L2-normalised. A memory-mapped array may be read-only."""
    rows = features.detach().cpu() if isinstance(features, Tensor) else torch.from_numpy(features.astype(np.float64))
    return F.normalize(rows.double(), dim=1)
