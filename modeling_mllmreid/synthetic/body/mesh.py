"""Triangle meshes of one layer: normals, smoothing, offset surfaces and rounded solids."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Layer(IntEnum):
    """What a triangle shows."""

    SKIN = 0
    LOWER = 1
    INNER = 2
    UPPER = 3
    SHOES = 4
    HAIR = 5
    BAG = 6
    HAT = 7
    NECK = 8


@dataclass
class Part:
    """A mesh of one layer at rest.

    Args:
        layer (`Layer`): What it shows.
        vertices (`np.ndarray`): (N, 3) in decimetres.
        normals (`np.ndarray`): (N, 3), of length 1.
        faces (`np.ndarray`): (F, 3), vertex numbers.
        place (`np.ndarray`): (N, 3), where each vertex lies on the body at rest: the coordinates of cloth.
        weights (`np.ndarray`): (N, bones), the share of each bone in the motion.
        shown (`np.ndarray`): (N,); a point is drawn where the interpolated value is above 0: the edge of a garment.
        arm (`np.ndarray`): (N,), 1 on arms.
        hand (`str`): "Left" or "Right" for something that hangs from this hand.
    """

    layer: Layer
    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    place: np.ndarray
    weights: np.ndarray
    shown: np.ndarray
    arm: np.ndarray
    hand: str = ""


def vertex_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Normals (N, 3) of length 1: the sum over the triangles at each vertex, weighted by area."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    across = np.cross(b - a, c - a)
    count = len(vertices)
    sums = [sum(np.bincount(faces[:, corner], across[:, axis], count) for corner in range(3)) for axis in range(3)]
    return unit(np.stack(sums, 1))


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors (..., 3) divided by their lengths, in float32."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    length = np.sqrt(x * x + y * y + z * z)
    result: np.ndarray = (vectors / np.maximum(length, 1e-9)[..., None]).astype(np.float32)
    return result


def smooth(vertices: np.ndarray, faces: np.ndarray, times: int) -> np.ndarray:
    """Moves every vertex towards the mean of its neighbours, `times` times."""
    edges = np.concatenate([faces[:, pair] for pair in ([0, 1], [1, 2], [2, 0], [1, 0], [2, 1], [0, 2])])
    count = len(vertices)
    degree = np.maximum(np.bincount(edges[:, 0], minlength=count), 1)[:, None]
    for _ in range(times):
        sums = [np.bincount(edges[:, 0], vertices[edges[:, 1], axis], count) for axis in range(3)]
        vertices = np.where(degree > 1, 0.4 * vertices + 0.6 * np.stack(sums, 1) / degree, vertices)
    return vertices.astype(np.float32)


def solid(
    layer: Layer,
    weights: np.ndarray,
    center: np.ndarray,
    radii: tuple[float, float, float],
    *,
    box: float = 1.0,
    around: int = 14,
    rows: int = 9,
    hand: str = "",
) -> Part:
    """An ellipsoid, or with `box` below 1 a rounded box, that moves with the bones of `weights` (bones,).

    Its `place` runs from -1 to 1 on each axis.
    """
    turn = np.linspace(0, 2 * np.pi, around, endpoint=False)
    rise = np.linspace(-np.pi / 2, np.pi / 2, rows)[:, None]
    shape = np.broadcast_arrays(np.cos(rise) * np.cos(turn), np.sin(rise), np.cos(rise) * np.sin(turn))
    place = np.stack([np.sign(axis) * np.abs(axis) ** box for axis in shape], -1).reshape(-1, 3)
    low = (np.arange(rows - 1)[:, None] * around + np.arange(around)).ravel()
    right = (np.arange(rows - 1)[:, None] * around + (np.arange(around) + 1) % around).ravel()
    faces = np.concatenate(
        [np.stack([low, low + around, right + around], 1), np.stack([low, right + around, right], 1)]
    )
    vertices = (center + place * np.array(radii)).astype(np.float32)
    moved = np.broadcast_to(weights.astype(np.float32), (len(vertices), len(weights)))
    shown, arm = np.ones(len(vertices), np.float32), np.zeros(len(vertices), np.float32)
    normals = vertex_normals(vertices, faces)
    return Part(layer, vertices, normals, faces, place.astype(np.float32), moved, shown, arm, hand)
