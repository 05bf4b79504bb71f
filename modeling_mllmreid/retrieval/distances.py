"""Distances between query and gallery features, in float32, one block of queries at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import UserError
from .exact import rounding_error
from .gpu_distances import exact_blocks
from .points import (
    COLUMN_TILE,
    EXACT_DEVICES,
    Features,
    Shift,
    checked_features,
    chunks,
    device_of,
    half_squares,
    points_of,
    shift_of,
)

METRICS = ("cosine", "euclidean")
# Above 32 MiB the C library maps each block on its own; smaller blocks fragment the heap.
BLOCK_BYTES = 48 * 2**20
# A prepared gallery up to this size is kept; a larger one, such as a memory map, is prepared for every block.
KEPT_BYTES = 256 * 2**20
# Matrix products round differently at the edges of a matrix. Without whole tiles, equal distances of a collapsed model
# would depend on their place in the gallery, and every distance on the block size.
ROW_TILE = 16
DEPTH_TILE = 4  # numbers: every row has the same alignment


def distance_blocks(
    query: Features, gallery: Features, *, metric: str = "cosine", block_size: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Computes the distances of all queries to the whole gallery in blocks, never the whole matrix at once.

    Both metrics are computed as |a - b|^2 of points around the mean of the gallery: if all features are in a narrow
    cone, like those of an LLM, 1 - dot product would lose its digits. The error is that of float32 in the squared
    lengths of the points. In one gallery a distance depends on its two features alone, not on the block size or on the
    order. Another gallery has another mean and rounds differently. The product is full float32, also under autocast
    and TF32 settings; on a GPU it is an exact float64 product, see `gpu_distances.py`.

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
    query, gallery = checked_features(query, "query_features"), checked_features(gallery, "gallery_features")
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query_features have width {query.shape[1]}, gallery_features {gallery.shape[1]}: use one model for both"
        )
    if metric not in METRICS:
        raise UserError(f"metric: unknown {metric!r}: use one of {', '.join(METRICS)}")
    if block_size is not None and block_size < 1:
        raise UserError(f"block_size: {block_size} is not a number of queries: use 1 or more, or None")
    return _blocks(query, gallery, shift_of(metric, gallery), block_size)


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
    shift = shift_of(metric, gallery)
    own, others = (
        torch.cat([(2 * half_squares(*points_of(features, *chunk, shift))).sqrt().cpu() for chunk in chunks(features)])
        for features in (query, gallery)
    )
    return rounding_error(query.shape[1], (own + others.max()).numpy())


def half_square_blocks(points: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yields blocks like `distance_blocks`, of half the squared distances between points of `all_points`."""
    return _blocks(points, points, Shift("points", points.new_zeros(points.shape[1], dtype=torch.float64)), None)


def _blocks(query: Features, gallery: Features, shift: Shift, block_size: int | None) -> Iterator[tuple[slice, Tensor]]:
    """Yields the blocks of `distance_blocks` for checked arguments."""
    device = device_of(gallery)
    if device.type in EXACT_DEVICES:
        yield from exact_blocks(query, gallery, shift, block_size, device)
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
        pieces = [(0, size)] if kept is not None else chunks(gallery)
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


def _rows(query: Features, start: int, stop: int, shift: Shift, device: torch.device) -> Tensor:
    """Returns queries as a factor of the product, whole tiles of float32: minus the point (D), its half, 1, zeros.

    The product of both factors is the distance itself, without another pass over the block.
    """
    width = query.shape[1]
    factor = torch.zeros(_whole(stop - start, ROW_TILE), _whole(width + 2, DEPTH_TILE), device=device)
    for first, last in chunks(query, start, stop):
        chunk = factor[first - start : last - start]
        points, zero = points_of(query, first, last, shift)
        chunk[:, :width], chunk[:, width], chunk[:, width + 1] = -points, half_squares(points, zero), 1
    return factor


def _columns(gallery: Features, start: int, stop: int, shift: Shift, device: torch.device) -> Tensor:
    """Returns gallery images as the other factor, whole tiles of float32: the point (D), 1, its half, zeros."""
    width = gallery.shape[1]
    factor = torch.zeros(_whole(stop - start, COLUMN_TILE), _whole(width + 2, DEPTH_TILE), device=device)
    for first, last in chunks(gallery, start, stop):
        chunk = factor[first - start : last - start]
        points, zero = points_of(gallery, first, last, shift)
        chunk[:, :width], chunk[:, width], chunk[:, width + 1] = points, 1, half_squares(points, zero)
    return factor


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
