"""Distances between query and gallery features, in float32, one block of queries at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import UserError
from .exact import TINY, rounding_error

Features = np.ndarray | Tensor
METRICS = ("cosine", "euclidean")
# Above 32 MiB the C library maps each block on its own; smaller blocks fragment the heap.
BLOCK_BYTES = 48 * 2**20
# A prepared gallery up to this size is kept; a larger one, such as a memory map, is prepared for every block.
KEPT_BYTES = 256 * 2**20
# Size of a chunk in float32: its float64 copies stay in the processor's cache.
CHUNK_BYTES = 2 * 2**20
# Matrix products round differently at the edges of a matrix. Without whole tiles, equal distances of a collapsed model
# would depend on their place in the gallery, and every distance on the block size.
ROW_TILE, COLUMN_TILE = 16, 64
DEPTH_TILE = 4  # numbers: every row has the same alignment
# Devices whose rounding depends on the shapes in spite of tiles: products there are exact, see `_exact_factor`.
EXACT_DEVICES = ("cuda",)
POINT_BITS = 26
EXACT_BYTES = 2**31  # of a prepared gallery; a larger one is prepared for every block, this many bytes at a time


class _Shift(NamedTuple):
    """The map from features to points around the origin: scale to length 1 (cosine), subtract the mean (D,) float64.

    metric: one of METRICS, or "points" if the features are such points already.
    """

    metric: str
    middle: Tensor


def distance_blocks(
    query: Features, gallery: Features, *, metric: str = "cosine", block_size: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Computes the distances of all queries to the whole gallery in blocks, never the whole matrix at once.

    Both metrics are computed as |a - b|^2 of points around the mean of the gallery: if all features are in a narrow
    cone, like those of an LLM, 1 - dot product would lose its digits. The error is that of float32 in the squared
    lengths of the points. In one gallery a distance depends on its two features alone, not on the block size or on the
    order. Another gallery has another mean and rounds differently. The product is full float32, also under autocast
    and TF32 settings; on a GPU it is an exact float64 product, see `_exact_factor`.

    Args:
        query (`np.ndarray` or `torch.Tensor`): Query features (Q, D), of any float type, on any device.
        gallery (`np.ndarray` or `torch.Tensor`): Gallery features (G, D). The work is done on the device of the
            gallery. A memory-mapped array is read in chunks and may be larger than memory.
        metric (`str`): "cosine", which is 1 - dot product of the L2-normalised features, or "euclidean", not squared.
        block_size (`int`, *optional*): Queries in a block. Defaults to the number that fits in 48 MiB, or in 96 MiB
            for a gallery of more than 256 MiB on the CPU.

    Returns:
        `Iterator[tuple[slice, torch.Tensor]]`: For each block the slice of its queries and their distances, a new
        float32 tensor (queries, G).

    Raises:
        UserError: The features are not two-dimensional floats, not finite, or of different widths.
    """
    query, gallery = _checked(query, "query_features"), _checked(gallery, "gallery_features")
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query_features have width {query.shape[1]}, gallery_features {gallery.shape[1]}: use one model for both"
        )
    if metric not in METRICS:
        raise UserError(f"metric: unknown {metric!r}: use one of {', '.join(METRICS)}")
    if block_size is not None and block_size < 1:
        raise UserError(f"block_size: {block_size} is not a number of queries: use 1 or more, or None")
    return _blocks(query, gallery, _shift(metric, gallery), block_size)


@torch.no_grad()
def rounding_errors(query: Features, gallery: Features, metric: str) -> np.ndarray:
    """Bounds the error of the distances of each query in `distance_blocks`.

    Args:
        query (`np.ndarray` or `torch.Tensor`): Query features (Q, D).
        gallery (`np.ndarray` or `torch.Tensor`): Gallery features (G, D).
        metric (`str`): "cosine" or "euclidean".

    Returns:
        `np.ndarray`: (Q,) float64; for "euclidean" the error of half the squared distance.
    """
    shift = _shift(metric, gallery)
    own, others = (
        torch.cat([(2 * _halves(*_points(features, *chunk, shift))).sqrt().cpu() for chunk in _chunks(features)])
        for features in (query, gallery)
    )
    return rounding_error(query.shape[1], (own + others.max()).numpy())


def all_points(metric: str, *sets: Features) -> Tensor:
    """Returns all features as points (N, D + 1), float32 on the CPU, one set after the other.

    The squared Euclidean distance of two points is twice their cosine distance, or their squared Euclidean distance.
    The last number keeps features that are zero apart from all others.
    """
    sets = tuple(features.detach() if isinstance(features, Tensor) else features for features in sets)
    shift = _shift(metric, *sets)
    width, first = sets[0].shape[1], 0
    points = torch.zeros(sum(map(len, sets)), width + 1)
    for features in sets:
        for start, stop in _chunks(features):
            chunk = points[first : first + stop - start]
            chunk[:, :width], chunk[:, width] = _points(features, start, stop, shift)
            first += len(chunk)
    return points


def half_square_blocks(points: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields blocks like `distance_blocks`, of half the squared distances between points of `all_points`."""
    return _blocks(points, points, _Shift("points", points.new_zeros(points.shape[1], dtype=torch.float64)), None)


def _blocks(
    query: Features, gallery: Features, shift: _Shift, block_size: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """Yields the blocks of `distance_blocks` for checked arguments."""
    device = gallery.device if isinstance(gallery, Tensor) else torch.device("cpu")
    if device.type in EXACT_DEVICES:
        yield from _exact_blocks(query, gallery, shift, block_size, device)
        return
    size, width = gallery.shape
    keep = 4 * size * width <= KEPT_BYTES
    if block_size is None:
        # A gallery that is prepared for every block gets larger blocks.
        fitting = BLOCK_BYTES * (1 if keep else 2) // (4 * max(_whole(size, COLUMN_TILE), 1))
        block_size = max(fitting // ROW_TILE, 1) * ROW_TILE
    kept = _columns(gallery, 0, size, shift, device) if keep else None
    for start in range(0, len(query), block_size):
        count = min(block_size, len(query) - start)
        rows = _rows(query, start, start + count, shift, device)
        distances = torch.empty(len(rows), _whole(size, COLUMN_TILE), device=device)
        pieces = [(0, size)] if kept is not None else _chunks(gallery)
        for first, stop in pieces:
            columns = _columns(gallery, first, stop, shift, device) if kept is None else kept
            block = distances[:, first : first + len(columns)]
            with torch.no_grad(), torch.autocast(device.type, enabled=False), _full_float32():
                torch.mm(rows, columns.T, out=block)
            block.clamp_(min=0)
            if shift.metric == "euclidean":
                block.mul_(2).sqrt_()
        yield slice(start, start + count), distances[:count, :size]
        del distances, block  # before the next block is allocated


def _exact_blocks(
    query: Features, gallery: Features, shift: _Shift, block_size: int | None, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Yields the blocks of `distance_blocks` on a GPU, where rounding depends on the shapes of the factors."""
    size = len(gallery)
    step = max(EXACT_BYTES // (8 * max(gallery.shape[1], 1)), 1)
    pieces = [(first, min(first + step, size)) for first in range(0, max(size, 1), step)]
    kept = _exact_factor(gallery, *pieces[0], shift, device) if len(pieces) == 1 else None
    block_size = block_size or max(BLOCK_BYTES // (4 * max(size, 1)), 1)
    for start in range(0, len(query), block_size):
        stop = min(start + block_size, len(query))
        rows, row_halves = _exact_factor(query, start, stop, shift, device)
        distances = torch.empty(stop - start, size, device=device)
        for first, last in pieces:
            columns, halves = _exact_factor(gallery, first, last, shift, device) if kept is None else kept
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                block = (row_halves[:, None] + halves).sub_(rows @ columns.T).clamp_(min=0)
            distances[:, first:last] = block.mul_(2).sqrt_() if shift.metric == "euclidean" else block
            del columns, halves, block  # before the next ones are allocated
        yield slice(start, stop), distances
        del distances


def _checked(features: Features, name: str) -> Features:
    """Checks that features are finite floats (N, D); returns them, a tensor detached."""
    floats = features.is_floating_point() if isinstance(features, Tensor) else False
    if isinstance(features, np.ndarray):
        floats = features.dtype in (np.float16, np.float32, np.float64)
    if not floats:
        kind = getattr(features, "dtype", type(features).__name__)
        raise UserError(f"{name}: {kind} is not a type of features: give a float NumPy array or tensor")
    if features.ndim != 2:
        raise UserError(f"{name}: shape {tuple(features.shape)} is not (images, width): give one row per image")
    if isinstance(features, Tensor):
        features = features.detach()
    broken = [
        start + int(row)
        for start, stop in _chunks(features)
        for row in torch.nonzero(~torch.isfinite(_float32(features, start, stop)).all(1))
    ]
    if broken:
        raise UserError(
            f"{name}: row {broken[0]} contains NaN or infinity ({len(broken)} such rows), from a diverged or "
            "overflowing model or a damaged image: embed again"
        )
    return features


def _chunks(features: Features, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
    """Yields the start and stop of chunks of rows: whole tiles of at most CHUNK_BYTES."""
    step = max(CHUNK_BYTES // (4 * max(features.shape[1], 1)) // COLUMN_TILE, 1) * COLUMN_TILE
    end = len(features) if stop is None else stop
    for first in range(start, end, step):
        yield first, min(first + step, end)


def _float32(features: Features, start: int, stop: int) -> Tensor:
    """Returns rows in float32. Rows of an array are copied, because a tensor cannot share a read-only array."""
    rows = features[start:stop]
    if isinstance(rows, Tensor):
        return rows.float()
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which is refused
        return torch.from_numpy(rows.astype(np.float32))


def _float64(features: Features, start: int, stop: int) -> Tensor:
    """Returns rows in float64, which represents every float type exactly."""
    rows = features[start:stop]
    if isinstance(rows, Tensor):
        rows = rows.cpu() if rows.device.type == "mps" else rows  # MPS has no float64
        return rows.to(torch.float64, memory_format=torch.contiguous_format)
    return torch.from_numpy(rows.astype(np.float64, order="C"))


def _shift(metric: str, *sets: Features) -> _Shift:
    """Returns the shift by the mean of all features.

    The mean is rounded coarsely: it does not depend on the order of the features, and small whole numbers stay exact.
    """
    width, count = sets[0].shape[1], sum(map(len, sets))
    total = torch.zeros(width, dtype=torch.float64)
    for features in sets:
        for start, stop in _chunks(features):
            rows = _float64(features, start, stop)
            total += (_scales(rows, metric) @ rows).cpu()
    return _Shift(metric, (total / max(count, 1)).bfloat16().double())


def _points(features: Features, start: int, stop: int, shift: _Shift) -> tuple[Tensor, Tensor]:
    """Returns rows as points (n, D) in float64 on the device of the features, and which rows are zero (n,)."""
    rows = _float64(features, start, stop)
    scales = _scales(rows, shift.metric)
    return torch.addcmul(-shift.middle.to(rows.device), rows, scales[:, None]), scales == 0


def _halves(points: Tensor, zero: Tensor) -> Tensor:
    """Returns half the squared lengths of points (n, D).

    The sum of two of them minus the dot product is half the squared distance, which is the cosine distance. A zero
    feature gets another 1/2, so that its distance to all others is 1.
    """
    norms: Tensor = torch.linalg.vector_norm(points, dim=1)
    return norms.square_().mul_(0.5).add_(zero, alpha=0.5)


def _scales(features: Tensor, metric: str) -> Tensor:
    """Returns the scale (n,) of each row (n, D): 1 over its length for the cosine, 0 for a zero row, else 1."""
    if metric != "cosine":
        return features.new_ones(len(features))
    lengths = torch.linalg.vector_norm(features, dim=1)
    return torch.where(lengths > TINY, 1 / lengths, 0)


def _rows(query: Features, start: int, stop: int, shift: _Shift, device: torch.device) -> Tensor:
    """Returns queries as a factor of the product, whole tiles of float32: minus the point (D), its half, 1, zeros.

    The product of both factors is the distance itself, without another pass over the block.
    """
    width = query.shape[1]
    factor = torch.zeros(_whole(stop - start, ROW_TILE), _whole(width + 2, DEPTH_TILE), device=device)
    for first, last in _chunks(query, start, stop):
        chunk = factor[first - start : last - start]
        points, zero = _points(query, first, last, shift)
        chunk[:, :width], chunk[:, width], chunk[:, width + 1] = -points, _halves(points, zero), 1
    return factor


def _columns(gallery: Features, start: int, stop: int, shift: _Shift, device: torch.device) -> Tensor:
    """Returns gallery images as the other factor, whole tiles of float32: the point (D), 1, its half, zeros."""
    width = gallery.shape[1]
    factor = torch.zeros(_whole(stop - start, COLUMN_TILE), _whole(width + 2, DEPTH_TILE), device=device)
    for first, last in _chunks(gallery, start, stop):
        chunk = factor[first - start : last - start]
        points, zero = _points(gallery, first, last, shift)
        chunk[:, :width], chunk[:, width], chunk[:, width + 1] = points, 1, _halves(points, zero)
    return factor


def _exact_factor(
    features: Features, start: int, stop: int, shift: _Shift, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns float64 points (n, D), and half their squared lengths (n,), whose dot products are exact in any order.

    The numbers of a point are rounded to 26 bits below a power of two above its length. Every product is a multiple of
    2^-52 of both powers, and every partial sum is at most 1 of them, so float64 has a bit to spare. (float32 has 24
    bits.) The steps before round each number on its own, or sum in a fixed order (`_sums`).
    """
    points = torch.empty(stop - start, features.shape[1], dtype=torch.float64, device=device)
    halves = torch.empty(stop - start, dtype=torch.float64, device=device)
    middle, step = shift.middle.to(device), max(BLOCK_BYTES // (8 * max(features.shape[1], 1)), 1)
    for first in range(start, stop, step):
        rows = _float64(features, first, min(first + step, stop)).to(device)
        zero = torch.zeros(len(rows), dtype=torch.bool, device=device)
        if shift.metric == "cosine":
            lengths = _sums(rows * rows).sqrt_()
            zero = lengths <= TINY
            rows = rows / torch.where(zero, 1, lengths)[:, None]
        rows = rows - middle
        # From the bits of the exponent: no GPU function guarantees exact powers of two.
        exponents = _sums(rows * rows).sqrt_().view(torch.int64) >> 52
        unit = ((exponents + 1 - POINT_BITS).clamp_(min=1) << 52).view(torch.float64)[:, None]
        rows = (rows / unit).round_().mul_(unit)
        here = slice(first - start, first - start + len(rows))
        # A zero feature gets another 1/2: its distance to all others is 1.
        points[here], halves[here] = rows, _sums(rows * rows).add_(zero).mul_(0.5)
    return points, halves


def _sums(rows: Tensor) -> Tensor:
    """Returns the sum of each row (n,) in an order that depends on the width alone, unlike a reduction on a GPU."""
    while rows.shape[1] > 1:
        rows = torch.nn.functional.pad(rows, (0, rows.shape[1] % 2))
        rows = rows[:, : rows.shape[1] // 2] + rows[:, rows.shape[1] // 2 :]
    return rows.sum(1)


def _whole(count: int, tile: int) -> int:
    """Rounds a count up to a multiple of the tile."""
    return -(-count // tile) * tile


@contextmanager
def _full_float32() -> Iterator[None]:
    """Computes float32 products within the block without TF32 or bfloat16; restores the settings afterwards."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
