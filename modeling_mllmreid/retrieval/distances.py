"""Distances between query and gallery features, in float32, one block of query rows at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import UserError

Features = np.ndarray | Tensor
METRICS = ("cosine", "euclidean")
# Above 32 MiB the C library maps a block by itself; smaller ones leave holes in the heap that never close.
BLOCK_BYTES = 48 * 2**20
# A prepared gallery up to this size is kept; a larger one, such as a memory map, is prepared anew for every block.
KEPT_BYTES = 256 * 2**20
# In float32. Small enough that the float64 copies stay in the processor's cache, and are not mapped anew each time.
CHUNK_BYTES = 2 * 2**20
# Matrix products run other code at the edges of a matrix, which rounds otherwise: a collapsed model's equal distances
# would differ by their place in the gallery, and every distance by the block size. Whole tiles keep them equal.
ROW_TILE, COLUMN_TILE = 16, 64
DEPTH_TILE = 4  # numbers: every row begins alike in memory
# Where whole tiles do not help, as the shapes choose the code: products there are exact, see `_exact_factor`.
EXACT_DEVICES = ("cuda",)
POINT_BITS = 26
EXACT_BYTES = 2**31  # of a prepared gallery; a larger one is prepared for every block anew, so many bytes at once
TINY = 1e-300  # the length of a feature without a direction


class _Shift(NamedTuple):
    """How features become points around the origin: scaled to length 1 for the cosine, less the middle (D,) float64.

    metric: one of METRICS, or "points" for what is such points already.
    """

    metric: str
    middle: Tensor


def distance_blocks(
    query: Features, gallery: Features, *, metric: str = "cosine", block_size: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yields (rows, distances of these query rows to the whole gallery), never the whole matrix at once.

    query: (Q, D) and gallery: (G, D), NumPy arrays or tensors of any float type, on any device; the work is done on the
    gallery's device. A memory-mapped array is read chunk by chunk, and may be larger than memory.
    metric: "cosine" is 1 - dot product of the L2-normalised features, "euclidean" is not squared.
    block_size: query rows per block; None takes as many as fit in 48 MiB, or in 96 MiB for a gallery of more than 256
    MiB on the CPU. Each block is a new float32 tensor (rows, G).
    Both metrics come from |a - b|^2 of points around the gallery's middle, as 1 - dot product has no digits left where
    all features lie in a narrow cone, as an LLM's do: the error is float32's in the square of the points' lengths.
    In one gallery a distance depends on its two features alone, not on the block size or the place: equal features are
    equally far. Another gallery has another middle, and rounds otherwise. The product is full float32 under autocast
    and TF32 settings too, and on a GPU a float64 one without rounding: see `_exact_factor`.
    Raises UserError for features that are not two-dimensional floats, not finite, or of different widths.
    """
    query, gallery = _checked(query, "query_features"), _checked(gallery, "gallery_features")
    if query.shape[1] != gallery.shape[1]:
        raise UserError(
            f"query_features have width {query.shape[1]}, gallery_features {gallery.shape[1]}: embed both by one model"
        )
    if metric not in METRICS:
        raise UserError(f"metric: unknown {metric!r}: use one of {', '.join(METRICS)}")
    if block_size is not None and block_size < 1:
        raise UserError(f"block_size: {block_size} is not a number of rows: use 1 or more, or None")
    return _blocks(query, gallery, _shift_of(metric, gallery), block_size)


def all_points(metric: str, *sides: Features) -> Tensor:
    """All features as points whose squared Euclidean distance is twice the cosine distance, or the squared Euclidean.

    Returns (N, D + 1) float32 on the CPU, side after side; the last number keeps features that are zero at a distance.
    """
    sides = tuple(side.detach() if isinstance(side, Tensor) else side for side in sides)
    shift = _shift_of(metric, *sides)
    width, first = sides[0].shape[1], 0
    together = torch.zeros(sum(map(len, sides)), width + 1)
    for side in sides:
        for start, stop in _chunks(side):
            some = together[first : first + stop - start]
            some[:, :width], some[:, width] = _points(side, start, stop, shift)
            first += len(some)
    return together


def half_square_blocks(points: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks, as `distance_blocks` gives them, of half the squared distances among points of `all_points`."""
    return _blocks(points, points, _Shift("points", points.new_zeros(points.shape[1], dtype=torch.float64)), None)


def _blocks(
    query: Features, gallery: Features, shift: _Shift, block_size: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """The loop of `distance_blocks` over checked arguments."""
    device = gallery.device if isinstance(gallery, Tensor) else torch.device("cpu")
    if device.type in EXACT_DEVICES:
        yield from _exact_blocks(query, gallery, shift, block_size, device)
        return
    size, width = gallery.shape
    keep = 4 * size * width <= KEPT_BYTES
    if block_size is None:
        # What is prepared anew for every block is prepared for more rows.
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
            part = distances[:, first : first + len(columns)]
            with torch.no_grad(), torch.autocast(device.type, enabled=False), _full_float32():
                torch.mm(rows, columns.T, out=part)
            part.clamp_(min=0)
            if shift.metric == "euclidean":
                part.mul_(2).sqrt_()
        yield slice(start, start + count), distances[:count, :size]
        del distances, part  # before the next block is made


def _exact_blocks(
    query: Features, gallery: Features, shift: _Shift, block_size: int | None, device: torch.device
) -> Iterator[tuple[slice, Tensor]]:
    """The loop of `distance_blocks` on a GPU, where a rounded product would differ with the shapes of its factors."""
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
                part = (row_halves[:, None] + halves).sub_(rows @ columns.T).clamp_(min=0)
            distances[:, first:last] = part.mul_(2).sqrt_() if shift.metric == "euclidean" else part
            del columns, halves, part  # before the next ones are made
        yield slice(start, stop), distances
        del distances


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


def _chunks(features: Features, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
    """(start, stop) of the rows that are worked on at once: whole tiles of at most CHUNK_BYTES."""
    step = max(CHUNK_BYTES // (4 * max(features.shape[1], 1)) // COLUMN_TILE, 1) * COLUMN_TILE
    end = len(features) if stop is None else stop
    for first in range(start, end, step):
        yield first, min(first + step, end)


def _float32(features: Features, start: int, stop: int) -> Tensor:
    """These rows in float32; a part of an array is copied, since a tensor cannot stand for a read-only one."""
    rows = features[start:stop]
    if isinstance(rows, Tensor):
        return rows.float()
    with np.errstate(over="ignore"):  # an overflow is found as infinity
        return torch.from_numpy(rows.astype(np.float32))


def _float64(features: Features, start: int, stop: int) -> Tensor:
    """These rows in float64, where every float type has all its digits."""
    rows = features[start:stop]
    if isinstance(rows, Tensor):
        rows = rows.cpu() if rows.device.type == "mps" else rows  # which has no float64
        return rows.to(torch.float64, memory_format=torch.contiguous_format)
    return torch.from_numpy(rows.astype(np.float64, order="C"))


def _shift_of(metric: str, *sides: Features) -> _Shift:
    """The shift by the middle of all these features together.

    The middle is rounded coarsely: so it does not change with their order, and small whole numbers stay exact.
    """
    width, count = sides[0].shape[1], sum(map(len, sides))
    total = torch.zeros(width, dtype=torch.float64)
    for side in sides:
        for start, stop in _chunks(side):
            features = _float64(side, start, stop)
            scales = _scales(features, metric)
            total += (scales @ features).cpu()
    return _Shift(metric, (total / max(count, 1)).bfloat16().double())


def _points(features: Features, start: int, stop: int, shift: _Shift) -> tuple[Tensor, Tensor]:
    """These rows as points (n, D), float64 on the features' device, and which have no direction, being zero (n,)."""
    rows = _float64(features, start, stop)
    scales = _scales(rows, shift.metric)
    return torch.addcmul(-shift.middle.to(rows.device), rows, scales[:, None]), scales == 0


def _halves(points: Tensor, zero: Tensor) -> Tensor:
    """Half the squared lengths of points (n, D): two halves less the dot product are half the squared distance.

    That is the cosine distance, but for a zero feature, which is to be at 1 from all and gets another 1/2.
    """
    return torch.linalg.vector_norm(points, dim=1).square_().mul_(0.5).add_(zero, alpha=0.5)


def _scales(features: Tensor, metric: str) -> Tensor:
    """What each row (n, D) is multiplied by, (n,) float64: 1 over its length for the cosine, 0 for a zero row."""
    if metric != "cosine":
        return features.new_ones(len(features))
    lengths = torch.linalg.vector_norm(features, dim=1)
    return torch.where(lengths > TINY, 1 / lengths, 0)


def _rows(query: Features, start: int, stop: int, shift: _Shift, device: torch.device) -> Tensor:
    """Query rows as one factor of the product, whole tiles of float32: minus the point (D), its half, 1, zeros.

    So the product of both factors is the distance itself, without a further pass over the block.
    """
    width = query.shape[1]
    factor = torch.zeros(_whole(stop - start, ROW_TILE), _whole(width + 2, DEPTH_TILE), device=device)
    for first, last in _chunks(query, start, stop):
        some = factor[first - start : last - start]
        points, zero = _points(query, first, last, shift)
        some[:, :width], some[:, width], some[:, width + 1] = -points, _halves(points, zero), 1
    return factor


def _columns(gallery: Features, start: int, stop: int, shift: _Shift, device: torch.device) -> Tensor:
    """Gallery rows as the other factor, whole tiles of float32: the point (D), 1, its half, zeros."""
    width = gallery.shape[1]
    factor = torch.zeros(_whole(stop - start, COLUMN_TILE), _whole(width + 2, DEPTH_TILE), device=device)
    for first, last in _chunks(gallery, start, stop):
        some = factor[first - start : last - start]
        points, zero = _points(gallery, first, last, shift)
        some[:, :width], some[:, width], some[:, width + 1] = points, 1, _halves(points, zero)
    return factor


def _exact_factor(
    features: Features, start: int, stop: int, shift: _Shift, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(points (n, D), half their squared lengths (n,)), float64, whose dot products are exact in any order of summing.

    A point's numbers are rounded to 26 bits below a power of two above its length. So every product is a multiple of
    2^-52 of both powers, and every partial sum at most 1 of them: float64 has a bit to spare. float32 has 24 bits.
    What is done before rounds each number by itself, or sums in one order (`_sums`).
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
        # From the exponent's bits, since no function of a GPU promises exact powers of two.
        exponents = _sums(rows * rows).sqrt_().view(torch.int64) >> 52
        unit = ((exponents + 1 - POINT_BITS).clamp_(min=1) << 52).view(torch.float64)[:, None]
        rows = (rows / unit).round_().mul_(unit)
        here = slice(first - start, first - start + len(rows))
        # A zero feature is at 1 from all, and gets another 1/2.
        points[here], halves[here] = rows, _sums(rows * rows).add_(zero).mul_(0.5)
    return points, halves


def _sums(rows: Tensor) -> Tensor:
    """Each row's sum (n,), by halves: in an order that depends on the width alone, unlike a reduction's on a GPU."""
    while rows.shape[1] > 1:
        rows = torch.nn.functional.pad(rows, (0, rows.shape[1] % 2))
        rows = rows[:, : rows.shape[1] // 2] + rows[:, rows.shape[1] // 2 :]
    return rows.sum(1)


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
