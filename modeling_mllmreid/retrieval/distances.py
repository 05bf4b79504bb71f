"""Distances between query and gallery features, in float32, one block of query rows at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

Features = np.ndarray | Tensor
METRICS = ("cosine", "euclidean")
# Above 32 MiB the C library maps a block by itself; smaller ones leave holes in the heap that never close.
BLOCK_BYTES = 48 * 2**20
# A prepared gallery up to this size is kept; a larger one, such as a memory map, is prepared anew for every block.
KEPT_BYTES = 256 * 2**20
CHUNK_BYTES = 4 * 2**20
# Matrix products run other code at the edges of a matrix, which rounds otherwise: a collapsed model's equal distances
# would differ by their place in the gallery, and every distance by the block size. Whole tiles keep them equal.
ROW_TILE, COLUMN_TILE = 16, 64


class _Columns(NamedTuple):
    """Some gallery images, ready for the product: their first index, their features (n, D), their squared norms."""

    start: int
    features: Tensor
    squares: Tensor


def distance_blocks(
    query: Features, gallery: Features, *, metric: str = "cosine", block_size: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, distances of these query rows to the whole gallery), never the whole matrix at once.

    query: (Q, D) and gallery: (G, D), NumPy arrays or tensors of any float type, on any device; the work is done on the
    gallery's device. A memory-mapped array is read chunk by chunk, and may be larger than memory.
    metric: "cosine" is 1 - dot product of the L2-normalised features, "euclidean" is not squared.
    block_size: query rows per block; None takes as many as fit in 48 MiB. Each block is a new float32 tensor (rows, G).
    A distance depends on its two features alone, not on the block size or the place in the gallery, and is a full
    float32 product under autocast and TF32 settings too.
    Raises UserError for features that are not two-dimensional floats, not finite, or of different widths.
    """
    query, gallery = _checked(query, "query_features"), _checked(gallery, "gallery_features")
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query_features have width {query.shape[1]}, gallery_features {gallery.shape[1]}: embed both by one model"
        )
    if metric not in METRICS:
        raise UserError(f"metric: unknown {metric!r}: use one of {', '.join(METRICS)}")
    if block_size is None:
        fitting = BLOCK_BYTES // (4 * max(_whole(len(gallery), COLUMN_TILE), 1))
        block_size = max(fitting // ROW_TILE, 1) * ROW_TILE
    if block_size < 1:
        raise UserError(f"block_size: {block_size} is not a number of rows: use 1 or more, or None")
    return _blocks(query, gallery, metric, block_size)


def _blocks(query: Features, gallery: Features, metric: str, block_size: int) -> Iterator[tuple[slice, Tensor]]:
    """The loop of `distance_blocks` over checked arguments."""
    device = gallery.device if isinstance(gallery, Tensor) else torch.device("cpu")
    center = _center(gallery).to(device) if metric == "euclidean" else None
    size, width = gallery.shape
    kept = [_joined(gallery, center, device)] if 4 * size * width <= KEPT_BYTES else None
    for start in range(0, len(query), block_size):
        block = _float32(query, start, start + block_size).to(device)
        rows = _prepared(block, center, ROW_TILE)
        row_squares = rows.square().sum(1, keepdim=True)
        distances = torch.empty(len(rows), _whole(size, COLUMN_TILE), device=device)
        for first, columns, squares in _columns(gallery, center) if kept is None else kept:
            part = distances[:, first : first + len(columns)]
            with torch.no_grad(), torch.autocast(device.type, enabled=False), _full_float32():
                torch.mm(rows, columns.T, out=part)
            if center is None:
                part.neg_().add_(1)
            else:
                part.mul_(-2).add_(squares).add_(row_squares).clamp_(min=0).sqrt_()
        yield slice(start, start + len(block)), distances[: len(block), :size]
        del distances, part  # before the next block is made


def _checked(features: Features, name: str) -> Features:
    """The features themselves, as a detached tensor or as an array, known to be finite floats (N, D)."""
    floats = features.is_floating_point() if isinstance(features, Tensor) else False
    if isinstance(features, np.ndarray):
        floats = features.dtype in (np.float16, np.float32, np.float64)
    if not floats:
        kind = getattr(features, "dtype", type(features).__name__)
        raise UserError(f"{name}: {kind} holds no features: give a float NumPy array or tensor")
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
            f"{name}: row {broken[0]} holds NaN or infinity ({len(broken)} such rows): a diverged or overflowing "
            "model, or a damaged image; embed again"
        )
    return features


def _chunks(features: Features) -> Iterator[tuple[int, int]]:
    """(start, stop) of the rows that are worked on at once: whole tiles, 4 MiB in float32."""
    step = max(CHUNK_BYTES // (4 * max(features.shape[1], 1)) // COLUMN_TILE, 1) * COLUMN_TILE
    for start in range(0, len(features), step):
        yield start, min(start + step, len(features))


def _float32(features: Features, start: int, stop: int) -> Tensor:
    """These rows in float32; a part of an array is copied, since a tensor cannot stand for a read-only one."""
    rows = features[start:stop]
    if isinstance(rows, Tensor):
        return rows.float()
    with np.errstate(over="ignore"):  # an overflow is found as infinity
        return torch.from_numpy(rows.astype(np.float32))


def _columns(gallery: Features, center: Tensor | None) -> Iterator[_Columns]:
    """The gallery chunk by chunk, prepared."""
    for start, stop in _chunks(gallery):
        features = _prepared(_float32(gallery, start, stop), center, COLUMN_TILE)
        yield _Columns(start, features, features.square().sum(1))


def _joined(gallery: Features, center: Tensor | None, device: torch.device) -> _Columns:
    """The whole gallery, prepared in one piece of memory."""
    size, width = gallery.shape
    features = torch.empty(_whole(size, COLUMN_TILE), width, device=device)
    squares = torch.empty(len(features), device=device)
    for start, part, part_squares in _columns(gallery, center):
        features[start : start + len(part)] = part
        squares[start : start + len(part)] = part_squares
    return _Columns(0, features, squares)


def _prepared(features: Tensor, center: Tensor | None, tile: int) -> Tensor:
    """Features normalised (no center) or shifted by the center, with zero rows up to a whole tile."""
    features = F.normalize(features, dim=1) if center is None else features - center
    missing = _whole(len(features), tile) - len(features)
    return F.pad(features, (0, 0, 0, missing)) if missing else features


def _center(gallery: Features) -> Tensor:
    """A point (1, D) in the middle of the gallery, to shift both sides by before Euclidean distances.

    Distances stay, and float32 keeps its digits where all features lie in a narrow cone far from the origin, as an
    LLM's do. The mean is rounded coarsely so that it does not change with the gallery's order.
    """
    total = torch.zeros(1, gallery.shape[1], dtype=torch.float64)
    for start, stop in _chunks(gallery):
        total += _float32(gallery, start, stop).sum(0, keepdim=True, dtype=torch.float64).cpu()
    return (total / max(len(gallery), 1)).bfloat16().float()


def _whole(count: int, tile: int) -> int:
    """The count rounded up to a multiple of the tile."""
    return -(-count // tile) * tile


@contextmanager
def _full_float32() -> Iterator[None]:
    """Float32 products without TF32 or bfloat16 inside, whatever a trainer has set; the settings come back after."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
