"""Hair, hats, scarves, hoods and bags."""

from random import Random

import numpy as np

from ..people.attributes import IN_HAND, Body, Outfit, Person
from .body import Shape, body_data
from .garments import Cut, covering
from .mesh import Layer, Part, solid

HAIR_THICKNESS = {"short": (0.03, 0.26), "curly": (0.35, 0.75)}
# Lowest point of long hair and of a bob, and of a hat's edge, at rest.
HAIR_ENDS = {"long": (2.4, 4.6), "bob": (5.2, 6.2)}
HAT_EDGES = {"cap": 7.75, "beanie": 7.45, "sunhat": 7.8}
# Half width, height and depth of what is carried in the hand, and how far its centre is behind the hand.
HAND_LUGGAGE = {
    "handbag": ((0.35, 0.7, 0.9), 0.0),
    "shopping bag": ((0.45, 1.3, 1.0), 0.0),
    "suitcase": ((0.9, 2.4, 0.6), 3.0),
}
CROWN = 8.5  # height of the head's top on the mesh at rest


def accessories(shape: Shape, person: Person, cut: Cut) -> list[Part]:
    """The parts of a person besides clothes and skin."""
    body, outfit = person.body, person.outfit
    thickness = _thickness(body) if outfit.hat is None else min(_thickness(body), 0.12)  # a hat presses hair down
    parts = _hair(shape, body, thickness)
    if outfit.hat is not None:
        parts += _hat(shape, outfit.hat, thickness)
    data = body_data()
    if outfit.upper == "hoodie":
        parts.append(solid(Layer.UPPER, data.only("Spine1"), np.array([0, 5.75, -0.75]), (1.05, 0.55, 0.55)))
    if outfit.scarf_color is not None:
        parts.append(solid(Layer.NECK, data.only("Neck"), np.array([0, 5.85, 0.15]), (0.95, 0.5, 0.95)))
    if outfit.bag is not None:
        parts.append(_bag(shape, outfit, cut))
    return parts


def _thickness(body: Body) -> float:
    rng = Random(f"{body.detail}:hair")
    return 0.0 if body.hair_style == "bald" else rng.uniform(*HAIR_THICKNESS.get(body.hair_style, (0.12, 0.18)))


def _scalp(rng: Random) -> np.ndarray:
    """Above 0 where hair grows, for each vertex of the body's surface."""
    skin = body_data().surfaces["body"]
    _, y, z = skin.place.T
    brow, nape = rng.uniform(7.75, 8.05), rng.uniform(6.3, 6.8)
    grows = np.maximum(y - brow - 0.25 * np.clip(z - 0.6, 0, 1), np.minimum(y - nape, 0.25 - z))
    return np.where(skin.on_head > 0.6, grows, -1)


def _head(shape: Shape) -> np.ndarray:
    """The vertices of the head."""
    skin = body_data().surfaces["body"]
    result: np.ndarray = shape.vertices[skin.ids][skin.on_head > 0.6]
    return result


def _hair(shape: Shape, body: Body, thickness: float) -> list[Part]:
    """The hair of a style; none for "bald"."""
    style = body.hair_style
    if style == "bald":
        return []
    data, rng = body_data(), Random(f"{body.detail}:style")
    scalp = _scalp(rng)
    parts = [covering(shape, data.surfaces["body"], Layer.HAIR, thickness * np.clip(2 * scalp, 0.2, 1), scalp)]
    head = _head(shape)
    back, scale = head[:, 2].min(), head[:, 1].max() / CROWN
    if style in HAIR_ENDS:
        x, y, z = data.surfaces["hair"].place.T
        face = np.where((z > 0.1) & (y < 7.9), np.abs(x) - 0.78, 1)
        shown = np.minimum(y - rng.uniform(*HAIR_ENDS[style]), face)
        if rng.random() < 0.6:  # behind the shoulders
            shown = np.where((z > 0.6) & (y < 6.8), -1, shown)
        parts.append(covering(shape, data.surfaces["hair"], Layer.HAIR, -0.04, shown))
    elif style == "ponytail":
        length = rng.uniform(0.7, 1.6)
        center = np.array([0, 7.6 * scale - 0.6 * length, back - 0.25])
        parts.append(solid(Layer.HAIR, data.only("Head"), center, (0.3, length, 0.28), around=10, rows=7))
    elif style == "bun":
        center = np.array([0, rng.uniform(7.6, 8.4) * scale, back - 0.15])
        parts.append(solid(Layer.HAIR, data.only("Head"), center, (0.4, 0.4, 0.4), around=10, rows=7))
    return parts


def _hat(shape: Shape, hat: str, hair: float) -> list[Part]:
    """A hat over hair of a thickness."""
    data = body_data()
    skin = data.surfaces["body"]
    _, y, z = skin.place.T
    shown = np.where(skin.on_head > 0.6, y - HAT_EDGES[hat] - 0.15 * np.clip(z, -1, 1), -1)
    parts = [covering(shape, skin, Layer.HAT, 0.6 * hair + (0.2 if hat == "beanie" else 0.12), shown)]
    head = _head(shape)
    height, front = 7.85 * head[:, 1].max() / CROWN, head[:, 2].max()
    if hat == "cap":
        center = np.array([0, height, 0.95 * front])
        parts.append(solid(Layer.HAT, data.only("Head"), center, (0.75, 0.07, 0.75), around=12, rows=5))
    elif hat == "sunhat":
        center = np.array([0, height, 0.35])
        parts.append(solid(Layer.HAT, data.only("Head"), center, (1.8, 0.08, 1.8), around=16, rows=5))
    return parts


def _bag(shape: Shape, outfit: Outfit, cut: Cut) -> Part:
    """The bag on the back, at the hip or in the hand of its side."""
    data, rng = body_data(), Random(f"{outfit.detail}:bag")
    side = 1 if outfit.bag_side == "left" else -1
    if outfit.bag in IN_HAND:
        hand = "Left" if side > 0 else "Right"
        radii, behind = HAND_LUGGAGE[outfit.bag]
        half = np.array(radii) * rng.uniform(0.8, 1.2)
        center = shape.joints[data.bone(f"{hand}Hand")] + [0, -1.1 - half[1], 0.2 - behind]
        return solid(Layer.BAG, data.only(f"{hand}Hand"), center, tuple(half), box=0.5, hand=hand)
    tights = data.surfaces["tights"]
    trunk = shape.vertices[tights.ids][tights.on_arm < 0.5]
    if outfit.bag == "backpack":
        back = trunk[np.abs(trunk[:, 1] - 3.7) < 0.9, 2].min() - cut.thickness
        center = np.array([0, rng.uniform(3.2, 4.2), back - 0.38])
        size = (rng.uniform(0.9, 1.4), rng.uniform(1.2, 2.1), rng.uniform(0.5, 0.85))
        return solid(Layer.BAG, data.only("Spine1"), center, size, box=0.55)
    hips = trunk[np.abs(trunk[:, 1] - 0.6) < 0.8, 0].max() + cut.thickness
    size = (rng.uniform(0.3, 0.5), rng.uniform(0.6, 1.2), rng.uniform(0.7, 1.3))
    center = np.array([side * (hips + 0.6 * size[0]), rng.uniform(-0.2, 1.3), rng.uniform(-0.3, 0.4)])
    return solid(Layer.BAG, data.only("Hips"), center, size, box=0.6)
