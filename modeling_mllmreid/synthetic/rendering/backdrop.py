"""What is behind a person: one ray for every second pixel, into ground, walls and things."""

import numpy as np

from .figure import View
from .filters import soften
from .scenes import FAR, Scene
from .surfaces import TILE

STEP = 2  # pixels
HAZE_LENGTH = 300.0  # decimetres


def draw_backdrop(scene: Scene, view: View, size: tuple[int, int]) -> np.ndarray:
    """Draws a scene without people.

    Args:
        scene (`Scene`): The scene.
        view (`View`): The camera.
        size (`tuple[int, int]`): Height and width in pixels.

    Returns:
        `np.ndarray`: (H, W, 3), linear colours.
    """
    height, width = size
    across = ((np.arange(0, width, STEP) + STEP / 2) - view.center_x) / view.scale_x
    up = (view.center_y - (np.arange(0, height, STEP) + STEP / 2)) / view.scale_y
    rays = np.stack(np.broadcast_arrays(across[None, :], up[:, None], 1.0), -1).reshape(-1, 3) @ view.axes
    rays, origin = rays.astype(np.float32), view.position.astype(np.float32)
    depth = np.full(len(rays), FAR, np.float32)
    color = np.tile(scene.backdrop.astype(np.float32), (len(rays), 1))
    normals = np.zeros_like(rays)
    normals[:, 1] = 1
    with np.errstate(divide="ignore", invalid="ignore"):
        _hit_planes(scene, origin, rays, depth, color, normals)
        _hit_things(scene, origin, rays, depth, color, normals)
    color *= scene.light.on(normals)
    if scene.haze:
        thick = np.clip((1 - np.exp(-depth / HAZE_LENGTH)) * 2 * scene.haze, 0, 0.6)[:, None]
        color = color * (1 - thick) + thick * scene.backdrop * scene.light.sky
    return soften(color.reshape(len(up), len(across), 3).repeat(STEP, 0).repeat(STEP, 1)[:height, :width])


def _hit_planes(
    scene: Scene, origin: np.ndarray, rays: np.ndarray, depth: np.ndarray, color: np.ndarray, normals: np.ndarray
) -> None:
    """Ground, the wall behind, and the walls at the sides."""
    distance, slant, back_tile, back_scale = scene.back
    facing = np.array([slant, 0, 1], np.float32)
    side_distance, side_tile, side_scale = scene.side
    planes = (
        (-origin[1] / np.minimum(rays[:, 1], -1e-5), *scene.ground, (0, 2), (0, 1, 0)),
        ((distance - origin @ facing) / (rays @ facing), back_tile, back_scale, (0, 1), (0, 0, -1)),
        (side_distance / np.abs(rays[:, 0]), side_tile, side_scale, (2, 1), (-0.7, 0, -0.7)),
    )
    for reached, tile, scale, (first, second), normal in planes:
        nearest = np.flatnonzero((reached > 0) & (reached < depth) & (reached < FAR))
        points = origin + rays[nearest] * reached[nearest, None]
        color[nearest] = sample(tile, points[:, second] * scale, points[:, first] * scale)
        depth[nearest], normals[nearest] = reached[nearest], normal


def sample(tile: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Colours of a repeated tile at fractional rows and columns (P,)."""
    top, left = np.floor(row), np.floor(column)
    down, right = (row - top)[:, None].astype(np.float32), (column - left)[:, None].astype(np.float32)
    top, left = top.astype(np.int64) % TILE, left.astype(np.int64) % TILE
    low, far = (top + 1) % TILE, (left + 1) % TILE
    upper = tile[top, left] * (1 - right) + tile[top, far] * right
    lower = tile[low, left] * (1 - right) + tile[low, far] * right
    result: np.ndarray = upper * (1 - down) + lower * down
    return result


def _hit_things(
    scene: Scene, origin: np.ndarray, rays: np.ndarray, depth: np.ndarray, color: np.ndarray, normals: np.ndarray
) -> None:
    """Boxes that stand in the scene."""
    for thing in scene.things:
        first, second = (thing.low - origin) / rays, (thing.high - origin) / rays
        enters, leaves = np.minimum(first, second), np.maximum(first, second)
        reached = np.maximum(np.maximum(enters[:, 0], enters[:, 1]), enters[:, 2]).astype(np.float32)
        left = np.minimum(np.minimum(leaves[:, 0], leaves[:, 1]), leaves[:, 2])
        hit = np.flatnonzero((reached > 0) & (reached < left) & (reached < depth))
        axis = enters[hit].argmax(1)
        shade = np.tile(thing.color, (len(hit), 1))
        if thing.two_tone:
            y = origin[1] + rays[hit, 1] * reached[hit]
            shade[(y > (thing.low[1] + thing.high[1]) / 2) & (axis != 1)] *= 0.25
        color[hit], depth[hit] = shade, reached[hit]
        normals[hit] = -np.sign(rays[hit]) * np.eye(3, dtype=np.float32)[axis]
