"""Garments as layers: copies of MakeHuman's tights and skirt surfaces, pushed outwards and cut at their edges.

Heights y are those of the mesh at rest, in decimetres: the neck is at 5.8, the waist at 1.2, the crotch at -0.6.
"""

from dataclasses import dataclass
from random import Random

import numpy as np

from ..people.attributes import Outfit
from .body import Shape, Surface, body_data
from .mesh import Layer, Part, smooth, vertex_normals

Range = tuple[float, float]

# Hem and thickness of each upper.
UPPER_FIT: dict[str, tuple[Range, Range]] = {
    "tee": ((-0.9, 0.1), (0.05, 0.2)),
    "top": ((-0.6, 0.4), (0.04, 0.05)),
    "shirt": ((-1.2, -0.2), (0.06, 0.2)),
    "blouse": ((-0.9, 0.2), (0.08, 0.2)),
    "sweater": ((-0.9, 0.1), (0.12, 0.26)),
    "hoodie": ((-1.0, 0.0), (0.2, 0.36)),
    "jacket": ((-1.2, 0.4), (0.2, 0.36)),
    "puffer": ((-0.9, 0.3), (0.4, 0.62)),
    "coat": ((-5.0, -1.8), (0.28, 0.45)),
    "dress": ((-5.0, -2.0), (0.05, 0.06)),
}
SLEEVE_ENDS: dict[str, Range] = {"none": (0.02, 0.03), "short": (0.15, 0.34), "long": (0.94, 1.02)}
HIGH_NECKS = ("sweater", "hoodie", "puffer", "coat")
# How far each lower stands off, how much wider it gets at its end, and where on the leg it ends (1: the ankle).
LOWER_FIT: dict[str, tuple[float, Range, Range]] = {
    "jeans": (0.08, (0.0, 0.1), (0.92, 1.02)),
    "trousers": (0.13, (0.04, 0.4), (0.9, 1.02)),
    "leggings": (0.02, (0.0, 0.0), (0.84, 1.0)),
    "shorts": (0.2, (0.15, 0.3), (0.2, 0.5)),
    "skirt": (0.05, (-0.16, 0.12), (0.0, 0.0)),
}
SKIRT_HEMS: tuple[Range, ...] = ((-3.2, -1.6), (-5.0, -3.2), (-7.0, -5.0))


@dataclass(frozen=True)
class Cut:
    """The lengths and widths of an outfit, drawn from its `detail`.

    `waist`, `hem`, `skirt_hem` and `neck` are heights; `sleeve_end` and `leg_end` are shares of the arm and the leg;
    `thickness` and `leg_loose` stand off the body; `flare`: what is added at the end; `gap`: half of an open front;
    `shoe_top`: share of the leg where shoes begin; `fold`: depth of the folds.
    """

    waist: float
    hem: float
    skirt_hem: float
    neck: float
    sleeve_end: float
    leg_end: float
    thickness: float
    leg_loose: float
    flare: float
    gap: float
    shoe_top: float
    fold: float


def cut_outfit(outfit: Outfit) -> Cut:
    """Draws the cut of an outfit."""
    rng = Random(f"{outfit.detail}:cut")
    hem, thickness = UPPER_FIT[outfit.upper]
    loose, flare, leg_end = LOWER_FIT.get(outfit.lower or "", (0.0, (0.0, 0.0), (0.0, 0.0)))
    tucked = outfit.upper in ("tee", "blouse", "top", "shirt") and rng.random() < 0.2
    waist = rng.uniform(0.9, 1.5)
    long_puffer = outfit.upper == "puffer" and rng.random() < 0.25
    boots = outfit.shoes == "boots"
    wide = outfit.lower == "trousers"
    return Cut(
        waist=waist,
        hem=waist - 0.1 if tucked else -2.8 if long_puffer else rng.uniform(*hem),
        skirt_hem=rng.uniform(*rng.choices(SKIRT_HEMS, (5, 3, 2))[0]),
        neck=5.75 if outfit.upper in HIGH_NECKS else rng.uniform(5.2, 5.7),
        sleeve_end=rng.uniform(*SLEEVE_ENDS[outfit.sleeves]),
        leg_end=rng.uniform(*leg_end),
        thickness=rng.uniform(*thickness),
        leg_loose=loose,
        flare=rng.uniform(*flare),
        gap=rng.uniform(0.15, 0.5),
        shoe_top=(0.93 if wide else rng.uniform(0.6, 0.85)) if boots else rng.uniform(0.92, 0.955),
        fold=0.4 if outfit.upper in ("coat", "puffer") else rng.uniform(0.25, 0.6),
    )


def garments(shape: Shape, outfit: Outfit, cut: Cut) -> list[Part]:
    """The layers of an outfit, and the skin that it leaves bare."""
    parts = [_shoes(shape, cut), _skin(shape, outfit, cut)]
    if outfit.lower == "skirt":
        parts.append(_flared(shape, Layer.LOWER, 0.03, cut.flare, (cut.waist + 0.3, cut.skirt_hem)))
    elif outfit.lower is not None:
        parts.append(_lower(shape, outfit, cut))
    parts.append(_upper(shape, outfit, cut))
    if cut.hem < -0.5:
        flare = 0.1 if outfit.upper == "dress" else -0.1
        gap = cut.gap + 0.2 if outfit.inner_color else 0.0
        parts.append(_flared(shape, Layer.UPPER, 0.8 * cut.thickness, flare, (0.6, cut.hem), gap))
    if outfit.inner_color is not None:
        parts.append(_inner(shape, cut))
    return parts


def covering(
    shape: Shape, surface: Surface, layer: Layer, offset: np.ndarray | float, shown: np.ndarray, smoothing: int = 0
) -> Part:
    """A copy of a surface, pushed out by `offset` (decimetres; a number or one for each vertex)."""
    faces = surface.faces
    vertices, normals = shape.vertices[surface.ids], shape.normals[surface.ids]
    if smoothing:
        vertices = smooth(vertices, faces, smoothing)
        normals = vertex_normals(vertices, faces)
    vertices = vertices + np.broadcast_to(np.asarray(offset, np.float32), len(vertices))[:, None] * normals
    outwards, shown = vertex_normals(vertices, faces), shown.astype(np.float32)
    return Part(layer, vertices, outwards, faces, surface.place, surface.weights, shown, surface.on_arm)


def _lower(shape: Shape, outfit: Outfit, cut: Cut) -> Part:
    """Trousers of any kind. An upper that is closed hides what is under it, so that nothing pokes through."""
    tights = body_data().surfaces["tights"]
    leg, y = tights.down_leg, tights.place[:, 1]
    offset = (0.02 + cut.leg_loose + cut.flare * np.clip(leg, 0, 1)) * np.where(leg > 0.9, 0.8, 1)
    shown = np.minimum((cut.leg_end - leg) * 7, cut.waist - y)
    if outfit.inner_color is None and outfit.upper != "dress":
        shown = np.minimum(shown, max(cut.hem, -2.0) + 0.35 - y)
    shown = np.where(tights.on_arm > 0.5, -1, shown)
    return covering(shape, tights, Layer.LOWER, offset, shown, 0 if outfit.lower in ("leggings", "jeans") else 2)


def _upper(shape: Shape, outfit: Outfit, cut: Cut) -> Part:
    """Trunk and sleeves of the upper, down to the hips."""
    tights = body_data().surfaces["tights"]
    (x, y, z), arm = tights.place.T, tights.on_arm > 0.5
    hang = np.clip((2.2 - y) * 0.05, 0, 0.16) * (cut.thickness > 0.08)
    offset = np.where(arm, 0.75 * (cut.thickness + 0.05), cut.thickness + 0.05 + hang)
    if outfit.upper == "puffer":
        offset = offset * (1 + 0.15 * np.sin(6 * y))
    front = (z > 0.15) & ~arm
    shown = np.where(arm, (cut.sleeve_end - tights.down_arm) * 5, y - max(cut.hem, -0.8))
    shown = np.minimum(shown, np.where(front, cut.neck - y + 0.9 * np.abs(x), 1))
    if outfit.inner_color is not None:
        shown = np.minimum(shown, np.where(front, np.abs(x) - cut.gap - 0.03 * (5 - y), 1))
    return covering(shape, tights, Layer.UPPER, offset, shown, 1 if cut.thickness < 0.1 else 3)


def _inner(shape: Shape, cut: Cut) -> Part:
    """What an open upper shows."""
    tights = body_data().surfaces["tights"]
    x, y, z = tights.place.T
    top = np.where(z > 0.15, 5.6 - y + np.abs(x), 5.9 - y)
    shown = np.where(tights.on_arm > 0.5, -1, np.minimum(y - (cut.waist - 0.5), top))
    return covering(shape, tights, Layer.INNER, 0.05 + 0.3 * min(max(cut.thickness - 0.1, 0), 0.3), shown, 1)


def _shoes(shape: Shape, cut: Cut) -> Part:
    """Shoes; boots reach higher."""
    tights = body_data().surfaces["tights"]
    shown = np.where(tights.on_arm > 0.5, -1, (tights.down_leg - cut.shoe_top) * 7)
    return covering(shape, tights, Layer.SHOES, np.where(tights.down_leg > 0.95, 0.14, 0.1), shown)


def _flared(
    shape: Shape, layer: Layer, offset: float, flare: float, heights: tuple[float, float], gap: float = 0.0
) -> Part:
    """The skirt surface between two heights, wider or narrower towards its hem; `gap`: half of an open front."""
    skirt = body_data().surfaces["skirt"]
    x, y, z = skirt.place.T
    top, hem = heights
    shown = np.minimum(y - hem, top - y)
    if gap:
        shown = np.minimum(shown, np.where(z > 0.2, np.abs(x) - gap, 1))
    part = covering(shape, skirt, layer, offset, shown)
    down = np.clip((1.5 - y) / 5, 0, 1)
    part.vertices[:, 0] *= 1 + flare * down
    part.vertices[:, 2] *= 1 + 0.6 * flare * down
    return part


def _skin(shape: Shape, outfit: Outfit, cut: Cut) -> Part:
    """Head, neck and hands, and arms and legs where nothing covers them."""
    skin = body_data().surfaces["body"]
    y, arm, leg = skin.place[:, 1], skin.on_arm > 0.5, skin.down_leg
    bare_from = cut.leg_end if outfit.lower not in (None, "skirt") else 0.0
    on_leg = np.minimum(leg - (bare_from - 0.06), cut.shoe_top + 0.02 - leg)
    neck = (y > 4.3) & ~arm
    bare = np.where(arm, skin.down_arm - (cut.sleeve_end - 0.05), np.where(skin.on_leg > 0.5, on_leg, -1))
    bare = np.where(neck | (arm & (outfit.sleeves == "none")), 1, bare)
    part = covering(shape, skin, Layer.SKIN, 0.0, np.ones(len(bare)))
    part.faces = skin.faces[(bare[skin.faces] > 0).any(1)]
    return part
