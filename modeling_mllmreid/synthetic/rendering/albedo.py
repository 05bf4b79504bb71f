"""The colour of each visible point of a person before light falls on it."""

import numpy as np

from ..body.body import SHOULDER, down_arm
from ..body.cloth import SIZE
from ..body.dressed import Dressed
from ..body.mesh import Layer

GAMMA = 2.2


def cloth_coordinates(layer: np.ndarray, place: np.ndarray, on_arm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column in a texture of points (P,): around the trunk, around each leg, and down and around the arms."""
    x, y, z = place.T
    legs = (layer == Layer.LOWER) | (layer == Layer.SHOES)
    own_axis = np.where(legs & (y < -0.6), x - 1.3 * np.sign(x), x)
    around = np.arctan2(own_axis, z - 0.1)
    down = np.where(legs, (1.6 - y) / 9.5, (6.0 - y) / 8.5)
    if on_arm.any():
        above = 0.75 * (np.abs(x) - SHOULDER[0]) + 0.66 * (y - SHOULDER[1])
        around = np.where(on_arm, np.arctan2(above, z - 0.2), around)
        down = np.where(on_arm, 0.62 * down_arm(place), down)
    column = ((around / (2 * np.pi) + 0.5) * SIZE).astype(int) % SIZE
    return (np.clip(down, 0, 0.999) * SIZE).astype(int), column


def albedo(
    dressed: Dressed, layer: np.ndarray, place: np.ndarray, on_arm: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """The linear colours of points.

    Args:
        dressed (`Dressed`): The person.
        layer (`np.ndarray`): (P,), the layer of each point.
        place (`np.ndarray`): (P, 3), its place on the mesh at rest.
        on_arm (`np.ndarray`): (P,), whether it lies on an arm.

    Returns:
        `tuple`: colours (P, 3), whether the point has the colour of a pattern (P,), and the cloth's rows and columns.
    """
    row, column = cloth_coordinates(layer, place, on_arm)
    color, marked = np.zeros((len(layer), 3), np.float32), np.zeros(len(layer), bool)
    for name in (Layer.LOWER, Layer.INNER, Layer.UPPER):
        chosen = layer == name
        texels = dressed.textures[name][row[chosen], column[chosen]]
        color[chosen], marked[chosen] = texels[:, :3], texels[:, 3] > 0
    sleeve = (layer == Layer.UPPER) & on_arm
    texels = dressed.sleeves[row[sleeve], column[sleeve]]
    color[sleeve], marked[sleeve] = texels[:, :3], texels[:, 3] > 0
    marked &= ~_fasten(dressed, (layer == Layer.UPPER) & ~on_arm, place, color)
    outfit, body = dressed.person.outfit, dressed.person.body
    shoes = layer == Layer.SHOES
    sole = place[shoes, 1:2] < -8.02
    color[shoes] = np.where(sole, outfit.sole_color.rgb, outfit.shoes_color.rgb)
    for name, scale in ((Layer.BAG, 0.4), (Layer.HAT, 0.12), (Layer.NECK, 0.4)):
        chosen = layer == name
        across, down = (np.clip(0.5 + scale * sign * place[chosen, axis], 0, 0.999) for axis, sign in ((0, 1), (1, -1)))
        color[chosen] = dressed.textures[name][(down * SIZE).astype(int), (across * SIZE).astype(int), :3]
    hair = layer == Layer.HAIR
    strands = 1 + 0.25 * dressed.bump[row[hair], (3 * column[hair]) % SIZE, :1]
    color[hair] = np.array(body.hair_color.rgb) * strands
    skin = layer == Layer.SKIN
    color[skin] = _skin(dressed, place[skin])
    return np.clip(color, 0.008, 1) ** GAMMA, marked, (row, column)


def _fasten(dressed: Dressed, trunk: np.ndarray, place: np.ndarray, color: np.ndarray) -> np.ndarray:
    """Paints zipper and straps on the trunk (P,); returns where they are."""
    x, y, z = place.T
    painted = np.zeros(len(trunk), bool)
    if dressed.zipper is not None:
        painted = trunk & (np.abs(x) < 0.1) & (z > 0)
        color[painted] = dressed.zipper
    if dressed.strap is None:
        return painted
    outfit = dressed.person.outfit
    side = 1 if outfit.bag_side == "left" else -1
    if outfit.bag == "backpack":
        strap = (np.abs(np.abs(x) - 0.85) < 0.17) & (y > 2.6)
    elif outfit.bag == "crossbody bag":
        strap = np.abs(0.9 * side * x - (1.9 - 0.62 * (y - 0.5))) < 0.2
    else:
        strap = (np.abs(side * x - 1.5) < 0.15) & (y > 0.5)
    strap &= trunk
    color[strap] = dressed.strap
    painted |= strap
    return painted


def _skin(dressed: Dressed, place: np.ndarray) -> np.ndarray:
    """Skin with eyes, brows, mouth, beard and glasses, which are a few pixels at most."""
    body = dressed.person.body
    x, y, z = place.T
    across, face = np.abs(x), z > 0.5
    color = np.tile(np.array(body.skin, np.float32), (len(x), 1))
    hair = np.array(body.hair_color.rgb)
    color[face & (np.abs(across - 0.32) < 0.13) & (np.abs(y - 7.28) < 0.06)] *= 0.4
    color[face & (np.abs(across - 0.33) < 0.22) & (np.abs(y - 7.5) < 0.05)] = 0.6 * hair + 0.2 * np.array(body.skin)
    color[face & (across < 0.28) & (np.abs(y - 6.63) < 0.06)] *= [0.88, 0.62, 0.62]
    if body.beard:
        beard = (y < 6.85) & (y > 6.0) & (z > 0.1) & (across < 0.9) & ~((across < 0.3) & (np.abs(y - 6.63) < 0.08))
        color[beard] = 0.4 * color[beard] + 0.5 * hair
    if body.glasses:
        rims = (np.abs(np.hypot(across - 0.34, 1.4 * (y - 7.27)) - 0.24) < 0.06) | (
            (np.abs(y - 7.3) < 0.04) & (across < 0.9)
        )
        color[face & rims] = 0.08
    return color
