"""Distances on a GPU, where the rounding of a product depends on the shapes of the factors: products are exact."""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from ..utils.errors import UserError
from .exact import TINY
from .points import Features, Shift, float64_rows

logger = logging.getLogger(__name__)

POINT_BITS = 26
# Of a block of distances, and of rows that are prepared at once.
BLOCK_BYTES = 48 * 2**20
# Of a prepared gallery; a larger one is prepared for every block, this many bytes at a time.
GALLERY_BYTES = 2**31


def exact_blocks(
    query: Features, gallery: Features, shift: Shift, block_size: int | None, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """Yields the blocks of `distance_blocks` on a GPU, where rounding depends on the shapes of the factors.

    On a GPU with too little free memory the blocks become smaller.
    """
    size = len(gallery)
    step = max(GALLERY_BYTES // (8 * max(gallery.shape[1], 1)), 1)
    block_size = block_size or max(BLOCK_BYTES // (4 * max(size, 1)), 1)
    kept: tuple[Tensor, Tensor] | None = None
    start = 0
    while start < len(query):
        stop = min(start + block_size, len(query))
        try:
            if kept is None and size <= step:
                kept = _factor(gallery, 0, size, shift, device)
            distances = _block(query, gallery, (start, stop), step, kept, shift, device)
        except torch.OutOfMemoryError as error:
            if stop - start == step == 1:
                raise UserError(
                    f"{device}: has no room for the distances of one query to {size:,} images: free its memory, or "
                    "move the features to the CPU"
                ) from error
            block_size, step, kept = max((stop - start) // 2, 1), max(min(step, size) // 2, 1), None
            logger.warning("%s: too little free memory: %d queries at once from now on", device, block_size)
            continue
        yield slice(start, stop), distances
        del distances  # before the next block is allocated
        start = stop


def _block(
    query: Features,
    gallery: Features,
    rows: tuple[int, int],
    step: int,
    kept: tuple[Tensor, Tensor] | None,
    shift: Shift,
    device: torch.device,
) -> Tensor:
    """Returns the distances of queries from start to stop to the whole gallery, `step` images at a time."""
    points, row_halves = _factor(query, *rows, shift, device)
    distances = torch.empty(len(points), len(gallery), device=device)
    for first in range(0, len(gallery), step):
        last = min(first + step, len(gallery))
        columns, halves = _factor(gallery, first, last, shift, device) if kept is None else kept
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            block = (row_halves[:, None] + halves).sub_(points @ columns.T).clamp_(min=0)
        distances[:, first:last] = block.mul_(2).sqrt_() if shift.metric == "euclidean" else block
        del columns, halves, block  # before the next ones are allocated
    return distances


def _factor(features: Features, start: int, stop: int, shift: Shift, device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns float64 points (n, D), and half their squared lengths (n,), whose dot products are exact in any order.

    The numbers of a point are rounded to 26 bits below a power of two above its length. Every product is a multiple of
    2^-52 of both powers, and every partial sum is at most 1 of them, so float64 has a bit to spare. (float32 has 24
    bits.) The steps before round each number on its own, or sum in a fixed order (`_sums`).
    """
    points = torch.empty(stop - start, features.shape[1], dtype=torch.float64, device=device)
    halves = torch.empty(stop - start, dtype=torch.float64, device=device)
    middle, step = shift.middle.to(device), max(BLOCK_BYTES // (8 * max(features.shape[1], 1)), 1)
    for first in range(start, stop, step):
        rows = float64_rows(features, first, min(first + step, stop)).to(device)
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
