"""Re-ranking: k-reciprocal re-ranking with sparse matrices, and alpha query expansion."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.errors import UserError
from .distances import distance_blocks, half_square_blocks
from .points import Features, all_points, on_cpu
from .ranking import nearest_in_block, rank_gallery

# Images that are processed at once, pairs of features that are compared at once, and pairs of weights.
IMAGES, PAIRS, WEIGHTS = 1024, 2048, 2**22
GPU_PAIRS = 2**16


class _Sparse(NamedTuple):
    """A sparse matrix by rows: row i has `values` at `columns` from starts[i] to starts[i + 1], columns ascending."""

    starts: Tensor
    columns: Tensor
    values: Tensor

    def counts(self, rows: Tensor) -> Tensor:
        """Returns the number of entries of these rows (n,)."""
        return self.starts[rows + 1] - self.starts[rows]

    def positions(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the positions of the entries of these rows (n,), row after row, and for each its row's place in n."""
        counts = self.counts(rows)
        places = torch.repeat_interleave(counts)
        before = counts.cumsum(0) - counts
        return torch.arange(len(places), device=rows.device) + (self.starts[rows] - before)[places], places


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

    Among equal distances the lower index is nearer, queries first. Memory is a few thousand bytes per image, on the
    device of the gallery, where the work is done.

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
        distances = _squared(block, metric).mul_(share / farthest[rows, None])
        shared = _shared_weights(weights, by_column, rows, block.shape[1])
        yield rows, distances.add_(1 - shared.div_(2 - shared), alpha=1 - share)
        del block, distances, shared  # before the next ones are allocated


def _squared(block: Tensor, metric: str) -> Tensor:
    """Turns a block into squared Euclidean distances: of unit vectors they are twice the cosine distance."""
    return block.mul_(2) if metric == "cosine" else block.square_()


def _neighbours(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the nearest images of each of N images, (N, count) int64, and its largest squared distance, (N,)."""
    size = len(points)
    neighbours = torch.empty(size, min(count, size), dtype=torch.int64, device=points.device)
    farthest = torch.empty(size, device=points.device)
    for rows, block in half_square_blocks(points):
        distances = block.mul_(2)
        farthest[rows] = distances.amax(1)
        neighbours[rows] = nearest_in_block(distances, neighbours.shape[1])
    return neighbours, torch.where(farthest > 0, farthest, 1)


def _weights(points: Tensor, neighbours: Tensor, farthest: Tensor, k1: int) -> _Sparse:
    """Returns the weights exp(-distance / farthest) of each image's expanded k-reciprocal set; each row sums to 1."""
    wide, narrow = neighbours[:, : k1 + 1], neighbours[:, : round(k1 / 2) + 1]
    size = len(neighbours)
    starts = range(0, size, IMAGES)
    mutual, mutual_narrow = (torch.cat([_mutual(side, i) for i in starts]) for side in (wide, narrow))
    keys = torch.cat(
        [_expanded(wide[i : i + IMAGES], mutual[i : i + IMAGES], narrow, mutual_narrow) + i * size for i in starts]
    )
    rows, columns = keys // size, keys % size
    values = torch.exp(-_pair_squares(points, rows, columns) / farthest[rows]).double()
    values /= torch.bincount(rows, weights=values, minlength=size)[rows]
    return _Sparse(_row_starts(rows, size), columns, values.float())


def _row_starts(rows: Tensor, size: int) -> Tensor:
    """Returns the start of each row in ascending rows (n,), and the end, (size + 1,)."""
    return torch.searchsorted(rows, torch.arange(size + 1, device=rows.device))


def _pair_squares(points: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Returns the squared distances (n,) float32 between points[rows] and points[columns]."""
    squares = torch.empty(len(rows), device=points.device)
    step = PAIRS if on_cpu(points) else GPU_PAIRS
    for start in range(0, len(rows), step):
        pairs = slice(start, start + step)
        squares[pairs] = (points[rows[pairs]] - points[columns[pairs]]).square_().sum(1)
    return squares


def _mutual(neighbours: Tensor, start: int) -> Tensor:
    """Returns which neighbours (n, k) of IMAGES images have the image among their own neighbours, bool."""
    images = torch.arange(start, min(start + IMAGES, len(neighbours)), device=neighbours.device)
    mutual: Tensor = (neighbours[neighbours[images]] == images[:, None, None]).any(2)
    return mutual


def _expanded(wide: Tensor, mutual: Tensor, narrow: Tensor, mutual_narrow: Tensor) -> Tensor:
    """Returns the expanded sets of n images as ascending, distinct keys: (image from 0) * N + member.

    wide and mutual are those of these images, (n, k1 + 1); narrow and mutual_narrow of all, (N, round(k1 / 2) + 1).
    """
    members = wide.where(mutual, -1)
    candidates, is_candidate = narrow[wide], mutual_narrow[wide] & mutual[:, :, None]
    inside = torch.zeros_like(is_candidate)
    for position in range(members.shape[1]):
        inside |= candidates == members[:, position, None, None]
    joined = 3 * (inside & is_candidate).sum(2) > 2 * is_candidate.sum(2)
    is_candidate &= joined[:, :, None]
    offset = torch.arange(len(wide), device=wide.device)[:, None] * len(narrow)
    keys: Tensor = torch.unique(torch.cat([(wide + offset)[mutual], (candidates + offset[:, :, None])[is_candidate]]))
    return keys


def _averaged(weights: _Sparse, nearest: Tensor) -> _Sparse:
    """Replaces each row by the mean of the rows of its nearest images (N, k2): local query expansion."""
    (size, count), keys, values = nearest.shape, [], []
    for start in range(0, size, IMAGES):
        positions, places = weights.positions(nearest[start : start + IMAGES].flatten())
        wanted = (places // count + start) * size + weights.columns[positions]
        distinct, inverse = torch.unique(wanted, return_inverse=True)
        sums = torch.zeros(len(distinct), dtype=torch.float64, device=nearest.device)
        values.append((sums.index_add_(0, inverse, weights.values[positions].double()) / count).float())
        keys.append(distinct)
    rows, columns = torch.cat(keys) // size, torch.cat(keys) % size
    return _Sparse(_row_starts(rows, size), columns, torch.cat(values))


def _transposed(weights: _Sparse, first: int, size: int) -> _Sparse:
    """Transposes the gallery's rows, those from `first`: for each image, the gallery images with weight on it."""
    positions, rows = weights.positions(torch.arange(first, size, device=weights.starts.device))
    columns, order = weights.columns[positions].sort(stable=True)
    return _Sparse(_row_starts(columns, size), rows[order], weights.values[positions][order])


def _shared_weights(weights: _Sparse, by_column: _Sparse, queries: slice, gallery_size: int) -> Tensor:
    """Sums the smaller of each query's and each gallery image's weight over all images, (n, G) float32."""
    device = weights.starts.device
    positions, rows = weights.positions(torch.arange(queries.start, queries.stop, device=device))
    shared = torch.zeros(queries.stop - queries.start, gallery_size, device=device)
    # Pairs up to and with each entry of a query. Of a collapsed model each has the whole gallery.
    ends = by_column.counts(weights.columns[positions]).cumsum(0).cpu()
    start = 0
    while start < len(positions):
        done = int(ends[start - 1]) if start else 0
        stop = max(int(torch.searchsorted(ends, done + WEIGHTS, right=True)), start + 1)
        own = positions[start:stop]
        others, places = by_column.positions(weights.columns[own])
        smaller = torch.minimum(by_column.values[others], weights.values[own][places])
        keys = rows[start:stop][places] * gallery_size + by_column.columns[others]
        shared.view(-1).index_add_(0, keys, smaller)
        start = stop
    return shared


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
