"""Distances between query and gallery features, in float32, one block of query rows at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError

Features = np.ndarray | Tensor
METRICS = ("cosine", "euclidean")
BLOCK_BYTES = 64 * 2**20
# Matrix products run other code at the edges of a matrix, which rounds otherwise: a collapsed model's equal distances
# would differ by their place in the gallery, and every distance by the block size. Whole tiles keep them equal.
ROW_TILE, COLUMN_TILE = 16, 64


def distance_blocks(
    query: Features, gallery: Features, *, metric: str = "cosine", block_size: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, distances of these query rows to the whole gallery), never the whole matrix at once.

    query: (Q, D) and gallery: (G, D), NumPy arrays or tensors of any float type, on any device; the work is done on the
    gallery's device. metric: "cosine" is 1 - dot product of the L2-normalised features, "euclidean" is not squared.
    block_size: query rows per block; None takes as many as fit in 64 MiB. Each block is a new float32 tensor (rows, G).
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


def _blocks(query: Tensor, gallery: Tensor, metric: str, block_size: int) -> Iterator[tuple[slice, Tensor]]:
    """The loop of `distance_blocks` over checked arguments."""
    size, device = len(gallery), gallery.device
    center = _center(gallery) if metric == "euclidean" else None
    columns = _prepared(gallery, center, COLUMN_TILE)
    column_squares = columns.square().sum(1) if metric == "euclidean" else None
    for start in range(0, len(query), block_size):
        block = query[start : start + block_size]
        rows = _prepared(block.to(device), center, ROW_TILE)
        with torch.no_grad(), torch.autocast(device.type, enabled=False), _full_float32():
            distances = rows @ columns.T
        if column_squares is None:
            distances.neg_().add_(1)
        else:
            distances.mul_(-2).add_(column_squares).add_(rows.square().sum(1, keepdim=True)).clamp_(min=0).sqrt_()
        yield slice(start, start + len(block)), distances[: len(block), :size]


def _checked(features: Features, name: str) -> Tensor:
    """The features as a detached tensor (N, D) of their own float type, on their own device."""
    if isinstance(features, np.ndarray) and features.dtype in (np.float16, np.float32, np.float64):
        features = torch.from_numpy(np.require(features, requirements=["C", "W"]))
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = getattr(features, "dtype", type(features).__name__)
        raise UserError(f"{name}: {kind} holds no features: give a float NumPy array or tensor")
    if features.ndim != 2:
        raise UserError(f"{name}: shape {tuple(features.shape)} is not (images, width): give one row per image")
    features = features.detach()
    broken = torch.nonzero(~torch.isfinite(features).all(1))
    if len(broken):
        raise UserError(
            f"{name}: row {int(broken[0])} holds NaN or infinity ({len(broken)} such rows): a diverged or overflowing "
            "model, or a damaged image; embed again"
        )
    return features


def _prepared(features: Tensor, center: Tensor | None, tile: int) -> Tensor:
    """Float32 features, normalised (no center) or shifted by the center, with zero rows up to a whole tile."""
    features = features.float()
    features = F.normalize(features, dim=1) if center is None else features - center
    return F.pad(features, (0, 0, 0, _whole(len(features), tile) - len(features)))


def _center(gallery: Tensor) -> Tensor:
    """A point (1, D) in the middle of the gallery, to shift both sides by before Euclidean distances.

    Distances stay, and float32 keeps its digits where all features lie in a narrow cone far from the origin, as an
    LLM's do. The mean is rounded coarsely so that it does not change with the gallery's order.
    """
    if not len(gallery):
        return torch.zeros(1, gallery.shape[1], device=gallery.device)
    return gallery.mean(0, keepdim=True, dtype=torch.float64).bfloat16().float()


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
