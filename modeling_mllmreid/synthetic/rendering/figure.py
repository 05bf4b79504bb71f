"""A person in the image: posed, projected, drawn and lit."""

from typing import NamedTuple

import numpy as np

from ..body.cloth import SIZE
from ..body.dressed import Dressed
from ..body.mesh import Layer, unit
from .albedo import albedo
from .filters import box_mean, dots
from .raster import rasterize
from .scenes import Light

# Heights on the mesh at rest.
HIPS, BROWS = -1.0, 7.6
SHADOW_SIZE = 72  # pixels of a shadow map of 24 decimetres
SHEEN = {Layer.HAIR: 0.06, Layer.SKIN: 0.03, Layer.BAG: 0.02, Layer.SHOES: 0.02}


class View(NamedTuple):
    """A camera: `position` (3,), `axes` (3, 3) right, up and forward, and the image's scale and centre in pixels.

    A point at (r, u, f) along the axes is at x = center_x + scale_x r / f, y = center_y - scale_y u / f.
    """

    position: np.ndarray
    axes: np.ndarray
    scale_x: float = 1.0
    scale_y: float = 1.0
    center_x: float = 0.0
    center_y: float = 0.0

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x, y and 1 / depth of points (N, 3)."""
        along = (points - self.position) @ self.axes.T
        inverse = 1 / np.maximum(along[:, 2], 0.1)
        return (
            self.center_x + self.scale_x * along[:, 0] * inverse,
            self.center_y - self.scale_y * along[:, 1] * inverse,
            inverse,
        )


class Figure(NamedTuple):
    """A drawn person, images (H, W): linear `rgb` (H, W, 3), `layer`, -1 where nothing is, `details`: where the
    colour of a "pattern", bare "legs" and a bare "scalp" show, and `ground`: the factor by which the person's shadow
    darkens the ground.
    """

    rgb: np.ndarray
    layer: np.ndarray
    details: dict[str, np.ndarray]
    ground: np.ndarray


def draw_figure(
    dressed: Dressed, vertices: np.ndarray, normals: np.ndarray, view: View, light: Light, size: tuple[int, int]
) -> Figure:
    """Draws a person.

    Args:
        dressed (`Dressed`): The person.
        vertices (`np.ndarray`): (N, 3), posed and placed in the scene, in decimetres.
        normals (`np.ndarray`): (N, 3).
        view (`View`): The camera.
        light (`Light`): The light of the scene.
        size (`tuple[int, int]`): Height and width of the image.

    Returns:
        `Figure`: The person in the image.
    """
    height, width = size
    x, y, inverse = (values.astype(np.float32) for values in view.project(vertices))
    seen = rasterize(x, y, inverse, dressed.shown, dressed.faces, size)
    corners = dressed.faces[seen.face]

    def at_pixels(values: np.ndarray) -> np.ndarray:
        first, second, third = (seen.weights[:, [c]] * values[corners[:, c]] for c in range(3))
        result: np.ndarray = first + second + third
        return result

    layer = dressed.layer[seen.face]
    on_arm = at_pixels(dressed.arm[:, None])[:, 0] > 0.5
    place = at_pixels(dressed.place)
    color, marked, cloth = albedo(dressed, layer, place, on_arm)
    skin, height_at_rest = (layer == Layer.SKIN) & ~on_arm, place[:, 1]
    details = {"pattern": marked, "legs": skin & (height_at_rest < HIPS), "scalp": skin & (height_at_rest > BROWS)}
    points, towards = at_pixels(vertices), unit(at_pixels(normals))
    sight = unit(points - view.position)
    towards[np.einsum("pi,pi->p", towards, sight) > 0.25] *= -1  # the inside of a garment
    bent = _folds(dressed, layer, cloth, towards, view)
    lit = _sunlit(dressed, vertices, points + 0.3 * towards, light)
    color = color * light.on(bent, lit) + _sheen(layer, bent, sight, light, lit)

    def image(values: np.ndarray, empty: float = 0.0) -> np.ndarray:
        full = np.full((height * width, *values.shape[1:]), empty, values.dtype)
        full[seen.pixel] = values
        return full.reshape(height, width, *values.shape[1:])

    depth = image((1 / seen.inverse_depth).astype(np.float32))
    layers = image(layer, -1)
    rgb = _occluded(image(color.astype(np.float32)), (layers >= 0).astype(np.float32), depth, height)
    details = {name: image(shows) for name, shows in details.items()}
    return Figure(rgb, layers, details, _ground_shadow(vertices, view, light, size))


def _folds(
    dressed: Dressed, layer: np.ndarray, cloth: tuple[np.ndarray, np.ndarray], normals: np.ndarray, view: View
) -> np.ndarray:
    """Normals bent by the folds of the cloth."""
    row, column = cloth
    folded = np.isin(layer, (Layer.UPPER, Layer.LOWER, Layer.INNER))
    bends = dressed.bump[row % SIZE, column] * (0.55 * dressed.cut.fold * folded)[:, None]
    return unit(normals + bends[:, :1] * view.axes[1] + bends[:, 1:] * view.axes[0])


def _sunlit(dressed: Dressed, vertices: np.ndarray, points: np.ndarray, light: Light) -> np.ndarray:
    """The share of the sun that reaches points (P,), by a shadow map of the person."""
    if not light.casts_shadows:
        return np.ones(len(points), np.float32)
    sun = light.direction
    across = unit(np.cross(sun, [0, 1, 0.01]))
    axes, middle = np.stack([across, np.cross(across, sun), -sun]), vertices.mean(0)
    scale, size = SHADOW_SIZE / 24, (SHADOW_SIZE, SHADOW_SIZE)

    def on_map(places: np.ndarray) -> np.ndarray:
        """Pixels across and down, and the distance along the light."""
        pixels = (places - middle) @ axes.T * scale + [SHADOW_SIZE / 2, SHADOW_SIZE / 2, 0]
        result: np.ndarray = pixels.astype(np.float32)
        return result

    x, y, depth = on_map(vertices).T
    offset = 60 * scale
    first = rasterize(x, y, 1 / (depth + offset), dressed.shown, dressed.faces, size)
    nearest = np.full(SHADOW_SIZE**2, np.inf, np.float32)
    nearest[first.pixel] = 1 / first.inverse_depth - offset
    x, y, depth = on_map(points).T
    blocked = np.zeros(len(points), np.float32)
    for dx, dy in ((0, 0), (0.8, 0.3), (-0.5, 0.7), (-0.3, -0.8)):
        column, row = (np.clip(value.astype(int), 0, SHADOW_SIZE - 1) for value in (x + dx, y + dy))
        blocked += nearest[row * SHADOW_SIZE + column] < depth - 0.7 * scale
    return 1 - blocked / 4


def _sheen(layer: np.ndarray, normals: np.ndarray, sight: np.ndarray, light: Light, lit: np.ndarray) -> np.ndarray:
    """The reflection of the sun (P, 3): little on cloth, more on hair."""
    strength = np.array([SHEEN.get(Layer(number), 0.005) for number in range(len(Layer))], np.float32)[layer]
    halfway = unit(light.direction - sight.mean(0)) if len(sight) else light.direction
    result: np.ndarray = (strength * lit * np.clip(normals @ halfway, 0, 1) ** 24)[:, None] * light.sun
    return result


def _occluded(rgb: np.ndarray, mask: np.ndarray, depth: np.ndarray, height: int) -> np.ndarray:
    """Darkens places whose surroundings are nearer to the camera."""
    for share, strength in ((0.012, 0.5), (0.035, 0.22)):
        radius = max(1, round(share * height))
        around = box_mean(depth, radius) / np.maximum(box_mean(mask, radius), 1e-3)
        rgb = rgb * (1 - np.clip((depth - around) * strength, 0, 0.55) * mask)[..., None]
    return rgb


def _ground_shadow(vertices: np.ndarray, view: View, light: Light, size: tuple[int, int]) -> np.ndarray:
    """The shadow on the ground: that of the sun, and a soft one under the feet."""
    unit_radius = size[0] / 128
    feet = vertices[vertices[:, 1] < 1.2] * np.array([1, 0, 1], np.float32)
    wide = max(1, round(2 * unit_radius))
    under = box_mean(_spots(view, feet, size, wide, 24), wide + 1) * 0.55
    if not light.casts_shadows:
        return 1 - under
    fallen = vertices - light.direction * (vertices[:, 1:2] / light.direction[1])
    cast = box_mean(_spots(view, fallen, size, max(1, round(unit_radius)), 9), 1) * light.shadow
    return 1 - np.maximum(under, cast)


def _spots(view: View, points: np.ndarray, size: tuple[int, int], radius: int, strength: float) -> np.ndarray:
    """An image (H, W) that is up to 1 around points (N, 3)."""
    x, y, _ = view.project(points)
    return np.minimum(box_mean(dots(x, y, size), radius) * strength, 1)
