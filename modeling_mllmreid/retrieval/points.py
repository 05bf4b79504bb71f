"""Features as points around their mean, from which distances are computed without a loss of digits."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..utils.errors import UserError
from .exact import TINY

Features = np.ndarray | Tensor
# Devices whose rounding depends on the shapes of a product: see `gpu_distances.py`.
EXACT_DEVICES = ("cuda",)
# Size of a chunk in float32: on a CPU its float64 copies stay in the processor's cache; on a GPU few are waited for.
CHUNK_BYTES, GPU_CHUNK_BYTES = 2 * 2**20, 48 * 2**20
# Rows of a chunk: see `distances.py`.
COLUMN_TILE = 64


class Shift(NamedTuple):
    """The map from features to points around the origin: scale to length 1 (cosine), subtract the mean (D,) float64.

    metric: one of METRICS, or "points" if the features are such points already.
    """

    metric: str
    middle: Tensor


def checked_features(features: Features, name: str) -> Features:
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
    if not _finite(features):
        broken = [
            start + int(row)
            for start, stop in chunks(features)
            for row in torch.nonzero(~torch.isfinite(_float32(features, start, stop)).all(1))
        ]
        raise UserError(
            f"{name}: row {broken[0]} contains NaN or infinity ({len(broken)} such rows), from a diverged or "
            "overflowing model or a damaged image: embed again"
        )
    return features


def _finite(features: Features) -> bool:
    """Returns whether all features are finite: then so are the smallest and the largest. A GPU is waited for once."""
    if 0 in features.shape:
        return True
    ends = [torch.stack(_float32(features, *chunk).aminmax()) for chunk in chunks(features)]
    return bool(torch.stack(ends).isfinite().all())


def chunks(features: Features, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
    """Yields the start and stop of chunks of rows: whole tiles of at most CHUNK_BYTES, on a GPU GPU_CHUNK_BYTES."""
    size = GPU_CHUNK_BYTES if device_of(features).type in EXACT_DEVICES else CHUNK_BYTES
    step = max(size // (4 * max(features.shape[1], 1)) // COLUMN_TILE, 1) * COLUMN_TILE
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


def float64_rows(features: Features, start: int, stop: int) -> Tensor:
    """Returns rows in float64, which represents every float type exactly."""
    rows = features[start:stop]
    if isinstance(rows, Tensor):
        rows = rows.cpu() if rows.device.type == "mps" else rows  # MPS has no float64
        return rows.to(torch.float64, memory_format=torch.contiguous_format)
    return torch.from_numpy(rows.astype(np.float64, order="C"))


def shift_of(metric: str, *sets: Features) -> Shift:
    """Returns the shift by the mean of all features.

    The mean is rounded coarsely: it does not depend on the order of the features, and small whole numbers stay exact.
    """
    width, count = sets[0].shape[1], sum(map(len, sets))
    sums = []
    for features in sets:
        for start, stop in chunks(features):
            rows = float64_rows(features, start, stop)
            sums.append(scales_of(rows, metric) @ rows)
    # All are moved to the CPU at last: a GPU is waited for once.
    total = sum((part.cpu() for part in sums), torch.zeros(width, dtype=torch.float64))
    return Shift(metric, (total / max(count, 1)).bfloat16().double())


def points_of(features: Features, start: int, stop: int, shift: Shift) -> tuple[Tensor, Tensor]:
    """Returns rows as points (n, D) in float64 on the device of the features, and which rows are zero (n,)."""
    rows = float64_rows(features, start, stop)
    scales = scales_of(rows, shift.metric)
    return torch.addcmul(-shift.middle.to(rows.device), rows, scales[:, None]), scales == 0


def half_squares(points: Tensor, zero: Tensor) -> Tensor:
    """Returns half the squared lengths of points (n, D).

    The sum of two of them minus the dot product is half the squared distance, which is the cosine distance. A zero
    feature gets another 1/2, so that its distance to all others is 1.
    """
    norms: Tensor = torch.linalg.vector_norm(points, dim=1)
    return norms.square_().mul_(0.5).add_(zero, alpha=0.5)


def scales_of(features: Tensor, metric: str) -> Tensor:
    """Returns the scale (n,) of each row (n, D): 1 over its length for the cosine, 0 for a zero row, else 1."""
    if metric != "cosine":
        return features.new_ones(len(features))
    lengths = torch.linalg.vector_norm(features, dim=1)
    return torch.where(lengths > TINY, 1 / lengths, 0)


def all_points(metric: str, *sets: Features) -> Tensor:
    """Returns all features as points (N, D + 1), float32 on the device of the last set, one set after the other.

    The squared Euclidean distance of two points is twice their cosine distance, or their squared Euclidean distance.
    The last number keeps features that are zero apart from all others.
    """
    sets = tuple(features.detach() if isinstance(features, Tensor) else features for features in sets)
    shift = shift_of(metric, *sets)
    width, first = sets[0].shape[1], 0
    points = torch.zeros(sum(map(len, sets)), width + 1, device=device_of(sets[-1]))
    for features in sets:
        for start, stop in chunks(features):
            chunk = points[first : first + stop - start]
            chunk[:, :width], chunk[:, width] = points_of(features, start, stop, shift)
            first += len(chunk)
    return points


def device_of(features: Features) -> torch.device:
    """Returns the device of features; arrays are on the CPU."""
    return features.device if isinstance(features, Tensor) else torch.device("cpu")


def on_cpu(tensor: Tensor) -> bool:
    """Returns whether NumPy can read a tensor, which ranks rows faster than torch does on a CPU."""
    return tensor.device.type == "cpu"
