"""Re-ranking: k-reciprocal re-ranking with sparse matrices, and alpha query expansion."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError
from .distances import Features, all_points, distance_blocks, half_square_blocks
from .ranking import nearest_in_row, rank_gallery

# Images that are processed at once, and pairs of features that are compared at once.
IMAGES, PAIRS = 1024, 2048


class _Sparse(NamedTuple):
    """A sparse matrix by rows: row i has `values` at `columns` from starts[i] to starts[i + 1], columns ascending."""

    starts: np.ndarray
    columns: np.ndarray
    values: np.ndarray

    def positions(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the positions of the entries of these rows (n,), row after row, and their count per row."""
        counts = self.starts[rows + 1] - self.starts[rows]
        before = np.cumsum(counts) - counts
        return np.arange(counts.sum()) + np.repeat(self.starts[rows] - before, counts), counts


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
    """Computes k-reciprocal re-ranked distances, block by block.

    All N = Q + G images are compared by their squared Euclidean distance (of L2-normalised features if the metric is
    cosine), and each row is divided by its maximum. Then, for each image:

    1. Its k-reciprocal set holds those of its k1 + 1 nearest images, itself included, that have it among theirs.
    2. The set of each member, made with round(k1 / 2) + 1 nearest images, is added if more than two thirds of it are in
       the image's set.
    3. The members get weights exp(-distance), of sum 1, which are averaged over the k2 nearest images.
    4. The result is (1 - lambda_value) * Jaccard distance of the weights + lambda_value * distance.

    Among equal distances the lower index is nearer, queries first. Memory is a few thousand bytes per image.

    Args:
        query (`np.ndarray` or `Tensor`): (Q, D) features of any float type, on CPU or GPU.
        gallery (`np.ndarray` or `Tensor`): (G, D) features.
        k1 (`int`, defaults to 20): neighbours of the k-reciprocal sets.
        k2 (`int`, defaults to 6): neighbours over which the weights are averaged.
        lambda_value (`float`, defaults to 0.3): weight of the original distance, from 0 to 1.
        metric (`str`, defaults to `"cosine"`): `"cosine"` or `"euclidean"`.
        block_size (`int`, *optional*): queries per block of distances. By default a block takes about 48 MiB.

    Returns:
        `Iterator[tuple[slice, Tensor]]`: a slice of the queries and their re-ranked distances (queries, G) float32, for
        `metrics_from_blocks` and other functions that take blocks.

    Raises:
        UserError: if k1 or k2 is below 1, lambda_value is outside 0 to 1, or features are not finite or do not fit each
            other.

    Example:
        >>> import numpy as np
        >>> from modeling_mllmreid import SamePerson, metrics_from_blocks, rerank_blocks
        >>> rng = np.random.default_rng(0)
        >>> persons = np.repeat(np.arange(10), 4)
        >>> features = rng.normal(size=(10, 16))[persons] + rng.normal(size=(40, 16))
        >>> rule = SamePerson(persons, persons, np.arange(40) % 4, np.arange(40) % 4)
        >>> metrics = metrics_from_blocks(rerank_blocks(features, features), rule)
        >>> f"mAP {metrics.mAP:.1%}"
        'mAP 69.6%'

    Source: Zhong et al. 2017.
    """
    if k1 < 1 or k2 < 1:
        raise UserError(f"k1 {k1}, k2 {k2}: not numbers of neighbours: use 1 or more")
    if not 0 <= lambda_value <= 1:
        raise UserError(f"lambda_value: {lambda_value} is no share: use 0 (Jaccard alone) to 1 (no re-ranking)")
    blocks = distance_blocks(query, gallery, metric=metric, block_size=block_size)
    points = all_points(metric, query, gallery)
    return _blocks(blocks, points, len(query), k1, k2, lambda_value, metric)


def _blocks(
    blocks: Iterator[tuple[slice, Tensor]], points: Tensor, queries: int, k1: int, k2: int, share: float, metric: str
) -> Iterator[tuple[slice, Tensor]]:
    """Computes the blocks of `rerank_blocks` from checked arguments."""
    if not len(points):
        return
    neighbours, farthest = _neighbours(points, max(k1 + 1, k2))
    weights = _weights(points, neighbours, farthest, k1)
    if k2 > 1:
        weights = _averaged(weights, neighbours[:, :k2])
    by_column = _transposed(weights, queries, len(points))
    for rows, block in blocks:
        distances = _squared(block, metric).cpu().numpy() * (share / farthest[rows, None])
        for query, row in enumerate(distances, start=rows.start):
            shared = _shared_weight(weights, by_column, query, len(row))
            row += (1 - share) * (1 - shared / (2 - shared))
        yield rows, torch.from_numpy(distances)


def _squared(block: Tensor, metric: str) -> Tensor:
    """Converts a block to squared Euclidean distances: of unit vectors they are twice the cosine distance."""
    return 2 * block if metric == "cosine" else block.square()


def _neighbours(points: Tensor, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest images of each of N images, (N, count) int64, and its largest squared distance, (N,)."""
    size = len(points)
    neighbours = np.empty((size, min(count, size)), dtype=np.int64)
    farthest = np.empty(size, dtype=np.float32)
    for rows, block in half_square_blocks(points):
        distances = block.mul_(2).numpy()
        farthest[rows] = distances.max(1)
        for image, row in enumerate(distances, start=rows.start):
            neighbours[image] = nearest_in_row(row, neighbours.shape[1])
    return neighbours, np.where(farthest > 0, farthest, 1)


def _weights(points: Tensor, neighbours: np.ndarray, farthest: np.ndarray, k1: int) -> _Sparse:
    """Returns the weights exp(-distance / farthest) of each image's expanded k-reciprocal set; each row sums to 1."""
    wide, narrow = neighbours[:, : k1 + 1], neighbours[:, : round(k1 / 2) + 1]
    size = len(neighbours)
    starts = range(0, size, IMAGES)
    mutual = np.concatenate([_mutual(wide, np.arange(i, min(i + IMAGES, size))) for i in starts])
    mutual_narrow = np.concatenate([_mutual(narrow, np.arange(i, min(i + IMAGES, size))) for i in starts])
    keys = np.concatenate(
        [_expanded(wide[i : i + IMAGES], mutual[i : i + IMAGES], narrow, mutual_narrow) + i * size for i in starts]
    )
    rows, columns = np.divmod(keys, size)
    values = np.exp(-_pair_squares(points.numpy(), rows, columns) / farthest[rows])
    values /= np.bincount(rows, weights=values, minlength=size)[rows]
    row_starts = np.searchsorted(rows, np.arange(size + 1))
    return _Sparse(row_starts, columns.astype(np.int32), values.astype(np.float32))


def _pair_squares(features: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Returns the squared distances (n,) float32 between features[rows] and features[columns]."""
    squares = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), PAIRS):
        pairs = slice(start, start + PAIRS)
        difference = features[rows[pairs]] - features[columns[pairs]]
        squares[pairs] = np.einsum("ij,ij->i", difference, difference)
    return squares


def _mutual(neighbours: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns which neighbours (n, k) of these images have the image among their own neighbours, bool."""
    mutual: np.ndarray = (neighbours[neighbours[images]] == images[:, None, None]).any(2)
    return mutual


def _expanded(wide: np.ndarray, mutual: np.ndarray, narrow: np.ndarray, mutual_narrow: np.ndarray) -> np.ndarray:
    """Returns the expanded sets of n images as ascending, distinct keys: (image from 0) * N + member.

    wide and mutual are those of these images, (n, k1 + 1); narrow and mutual_narrow of all, (N, round(k1 / 2) + 1).
    """
    members = np.where(mutual, wide, -1)
    candidates, is_candidate = narrow[wide], mutual_narrow[wide] & mutual[:, :, None]
    inside = np.zeros_like(is_candidate)
    for position in range(members.shape[1]):
        inside |= candidates == members[:, position, None, None]
    joined = 3 * (inside & is_candidate).sum(2) > 2 * is_candidate.sum(2)
    is_candidate &= joined[:, :, None]
    offset = np.arange(len(wide))[:, None] * len(narrow)
    return np.unique(np.concatenate([(wide + offset)[mutual], (candidates + offset[:, :, None])[is_candidate]]))


def _averaged(weights: _Sparse, nearest: np.ndarray) -> _Sparse:
    """Replaces each row by the mean of the rows of its nearest images (N, k2): local query expansion."""
    size, blocks = len(nearest), []
    for start in range(0, size, IMAGES):
        block = nearest[start : start + IMAGES]
        positions, counts = weights.positions(block.ravel())
        row = np.repeat(np.repeat(np.arange(start, start + len(block)), block.shape[1]), counts)
        keys = row * size + weights.columns[positions]
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        first = np.flatnonzero(np.diff(keys, prepend=-1))
        sums = np.add.reduceat(weights.values[positions][order].astype(np.float64), first)
        blocks.append((keys[first], (sums / block.shape[1]).astype(np.float32)))
    rows, columns = np.divmod(np.concatenate([keys for keys, _ in blocks]), size)
    starts = np.searchsorted(rows, np.arange(size + 1))
    return _Sparse(starts, columns.astype(np.int32), np.concatenate([values for _, values in blocks]))


def _transposed(weights: _Sparse, first: int, size: int) -> _Sparse:
    """Transposes the gallery's rows, those from `first`: for each image, the gallery images with weight on it."""
    positions = slice(weights.starts[first], None)
    columns = weights.columns[positions]
    order = np.argsort(columns, kind="stable")
    counts = np.diff(weights.starts[first:])
    rows = np.repeat(np.arange(size - first, dtype=np.int32), counts)
    starts = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=size))])
    return _Sparse(starts, rows[order], weights.values[positions][order])


def _shared_weight(weights: _Sparse, by_column: _Sparse, query: int, gallery_size: int) -> np.ndarray:
    """Sums the smaller of the query's and each gallery image's weight over all images, (G,) float64."""
    own = slice(weights.starts[query], weights.starts[query + 1])
    positions, counts = by_column.positions(weights.columns[own])
    smaller = np.minimum(by_column.values[positions], np.repeat(weights.values[own], counts))
    return np.bincount(by_column.columns[positions], weights=smaller, minlength=gallery_size)


def expand_queries(query: Features, gallery: Features, *, k: int = 10, alpha: float = 3.0) -> np.ndarray:
    """Expands each query feature by its nearest gallery images: query + sum of similarity**alpha * neighbour.

    The similarity is the cosine; negative similarities count as 0. No identity is used.

    Args:
        query (`np.ndarray` or `Tensor`): (Q, D) features of any float type.
        gallery (`np.ndarray` or `Tensor`): (G, D) features.
        k (`int`, defaults to 10): number of neighbours.
        alpha (`float`, defaults to 3.0): exponent of the similarity; 0 is plain average query expansion.

    Returns:
        `np.ndarray`: (Q, D) float32, L2-normalised.

    Raises:
        UserError: if k is below 1, alpha is negative, or features are not finite or do not fit each other.

    Source: Radenovic et al. 2018.
    """
    if alpha < 0:
        raise UserError(f"alpha: {alpha} is negative: use 0 (plain average) or more")
    ranking = rank_gallery(query, gallery, k)
    expanded = _unit(query)
    for feature, indices, distances in zip(expanded, ranking.indices, ranking.distances, strict=True):
        valid = indices >= 0
        weights = (1 - torch.from_numpy(distances[valid]).double()).clamp(min=0) ** alpha
        feature += weights @ _unit(gallery[indices[valid]])
    return F.normalize(expanded, dim=1).float().numpy()


def _unit(features: Features) -> Tensor:
    """Returns the features L2-normalised, as a new float64 tensor on the CPU. A memory map may be read-only."""
    values = features.detach().cpu() if isinstance(features, Tensor) else torch.from_numpy(features.astype(np.float64))
    return F.normalize(values.double(), dim=1)
