"""Procedural surfaces of scenes: linear colours of ground and walls as square tiles."""

from collections.abc import Callable
from functools import partial
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from ..body.cloth import noise
from ..people.colors import BRIGHT, WORN, cloth_color, hsv

TILE = 192  # pixels of a side
Y, X = np.mgrid[:TILE, :TILE]
Painter = Callable[[Random, np.ndarray], np.ndarray]


def surface(rng: Random, kind: str) -> np.ndarray:
    """A tile (TILE, TILE, 3) of linear colour. `kind`: a name of `GROUNDS` or `WALLS`."""
    painter, hues, saturation, value = (GROUNDS | WALLS)[kind]
    tile = np.ones((TILE, TILE, 3), np.float32) * np.array(
        hsv(rng.uniform(*hues), rng.uniform(0, saturation), rng.uniform(*value)), np.float32
    )
    tile = painter(rng, tile)
    grain = 1 + rng.uniform(0.03, 0.15) * noise(rng, rng.uniform(0.4, 1.3), TILE)
    return (np.clip(tile * grain[..., None], 0.01, 1) ** 2.2).astype(np.float32)


def _plain(rng: Random, tile: np.ndarray) -> np.ndarray:
    return tile


def _paving(rng: Random, tile: np.ndarray) -> np.ndarray:
    count = rng.choice((8, 12, 24))
    side = TILE // count
    tone = np.array([[rng.uniform(0.85, 1.1) for _ in range(count)] for _ in range(count)], np.float32)
    tile = tile * tone[Y // side, X // side][..., None]
    tile[(X % side < 1) | (Y % side < 1)] *= rng.uniform(0.6, 0.9)
    return tile


def _marked_road(rng: Random, tile: np.ndarray) -> np.ndarray:
    if rng.random() < 0.5:
        tile[(X // rng.randint(18, 40)) % 2 == 0] = rng.uniform(0.7, 0.9)
    else:
        tile[np.abs(X - TILE / 2) < 5] = rng.uniform(0.75, 0.9)
    return tile


def _brick(rng: Random, tile: np.ndarray) -> np.ndarray:
    height, length = 8, 16
    row = Y // height
    shifted = X + row % 2 * length // 2
    tones = np.array([rng.uniform(0.8, 1.2) for _ in range(997)], np.float32)
    mortar = (Y % height < 1) | (shifted % length < 1)
    tile = tile * tones[(row * 31 + shifted // length * 17) % 997][..., None]
    tile[mortar] = 0.5 * tile[mortar] + 0.25
    return tile


def _panels(rng: Random, tile: np.ndarray) -> np.ndarray:
    wide = rng.randint(14, 60)
    tones = np.array([rng.uniform(0.8, 1.15) for _ in range(TILE)], np.float32)
    tile = tile * tones[X // wide][..., None]
    tile[X % wide < 2] *= 0.6
    return tile


def _facade(rng: Random, tile: np.ndarray, goods: int = 0) -> np.ndarray:
    """Windows in rows, each with `goods` things behind it."""
    image = Image.fromarray((tile * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    wide, tall = rng.randint(22, 64), rng.randint(28, 80)
    for left in range(0, TILE, wide):
        for top in range(0, TILE, tall):
            box = (left + 3, top + 4, left + wide - 4, top + tall - 5)
            draw.rectangle(box, fill=_bytes(cloth_color(rng, WORN).rgb))
            for _ in range(goods):
                x, y = rng.uniform(box[0], box[2] - 4), rng.uniform(box[1], box[3] - 4)
                corner = (min(x + rng.uniform(2, 14), box[2]), min(y + rng.uniform(2, 18), box[3]))
                draw.rectangle((x, y, *corner), fill=_bytes(cloth_color(rng, BRIGHT).rgb))
    return np.asarray(image, np.float32) / 255


def _foliage(rng: Random, tile: np.ndarray) -> np.ndarray:
    leaves = noise(rng, 0.9, TILE)
    tile = tile * (1 + 0.55 * leaves[..., None])
    tile[leaves > 1.5] = rng.uniform(0.4, 0.85)
    return tile


def _fence(rng: Random, tile: np.ndarray) -> np.ndarray:
    tile[X % rng.randint(6, 16) < 2] *= rng.choice((0.35, 1.6))
    return tile


def _clutter(rng: Random, tile: np.ndarray) -> np.ndarray:
    """Blurred shapes of no certain thing."""
    colors = np.stack([noise(rng, 1.5, TILE) for _ in range(3)], -1)
    return tile + 0.08 * colors + 0.14 * noise(rng, 1.2, TILE)[..., None]


def _bytes(rgb: tuple[float, ...]) -> tuple[int, ...]:
    return tuple(int(255 * channel) for channel in rgb)


# Painter, range of hues, highest saturation and range of values of each surface.
GROUNDS: dict[str, tuple[Painter, tuple[float, float], float, tuple[float, float]]] = {
    "asphalt": (_plain, (0, 1), 0.08, (0.2, 0.5)),
    "paving": (_paving, (0.02, 0.14), 0.18, (0.35, 0.75)),
    "road": (_marked_road, (0, 1), 0.06, (0.2, 0.4)),
    "grass": (_plain, (0.18, 0.32), 0.5, (0.25, 0.5)),
    "sand": (_plain, (0.08, 0.13), 0.35, (0.5, 0.8)),
    "snow": (_plain, (0.55, 0.65), 0.06, (0.75, 0.92)),
    "floor": (_paving, (0, 1), 0.12, (0.45, 0.8)),
}
WALLS: dict[str, tuple[Painter, tuple[float, float], float, tuple[float, float]]] = {
    "brick": (_brick, (0, 0.07), 0.5, (0.3, 0.65)),
    "plaster": (_plain, (0, 0.16), 0.3, (0.4, 0.9)),
    "panels": (_panels, (0, 1), 0.2, (0.35, 0.85)),
    "windows": (_facade, (0, 0.15), 0.25, (0.3, 0.8)),
    "shops": (partial(_facade, goods=5), (0, 1), 0.35, (0.2, 0.75)),
    "foliage": (_foliage, (0.18, 0.36), 0.6, (0.18, 0.45)),
    "fence": (_fence, (0, 1), 0.25, (0.2, 0.7)),
    "clutter": (_clutter, (0, 1), 0.25, (0.25, 0.7)),
}
