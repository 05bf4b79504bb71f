"""Procedural cloth: square images around a garment, in sRGB, with a mask of its pattern's colour.

A texture has `SIZE` rows from the collar or waist down and `SIZE` columns around the body, the front in the middle.
"""

import math
from collections.abc import Callable
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from ..people.colors import RGB

SIZE = 128
FRONT = SIZE // 2
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE].astype(np.float32)


def noise(rng: Random, smoothness: float, size: int = SIZE) -> np.ndarray:
    """Noise (size, size) that can be tiled, of mean 0 and deviation 1, with a spectrum of 1 / frequency^smoothness."""
    white = white_noise(rng, (size, size))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    frequency[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(white) * frequency**-smoothness).real
    result: np.ndarray = (field / field.std()).astype(np.float32)
    return result


def white_noise(rng: Random, shape: tuple[int, ...]) -> np.ndarray:
    """Independent normal numbers. The old generator of NumPy is the one whose numbers never change."""
    return np.random.RandomState(rng.getrandbits(32)).standard_normal(shape)


def weave(
    rng: Random, base: RGB, pattern: str = "plain", second: RGB = (0, 0, 0), third: RGB = (0, 0, 0)
) -> np.ndarray:
    """A texture.

    Args:
        rng (`Random`): Draws the form of the pattern, and the weave.
        base (`tuple`): sRGB of the cloth.
        pattern (`str`): A name of `PATTERNS`, or "plain".
        second (`tuple`): sRGB of the pattern.
        third (`tuple`): sRGB of details of the pattern.

    Returns:
        `np.ndarray`: (SIZE, SIZE, 4): sRGB from 0 to 1, and 1 where the cloth has the colour of the pattern.
    """
    cloth = np.zeros((SIZE, SIZE, 4), np.float32)
    cloth[..., :3] = base
    if pattern != "plain":
        for mask, color in PATTERNS[pattern](rng, second, third):
            cloth[mask, :3], cloth[mask, 3] = color, color == second
    wear = 1 + rng.uniform(0.01, 0.09) * noise(rng, rng.uniform(0.2, 0.9))
    cloth[..., :3] = np.clip(cloth[..., :3] * wear[..., None], 0.01, 1)
    return cloth


Painted = list[tuple[np.ndarray, RGB]]


def _striped(rng: Random, second: RGB, third: RGB) -> Painted:
    along = ROWS if rng.random() < 0.75 else COLUMNS
    count, duty = rng.randint(5, 20), rng.uniform(0.3, 0.6)
    painted = [((along * count / SIZE + rng.random()) % 1 < duty, second)]
    if rng.random() < 0.3:
        painted.append(((along * count / SIZE / 2) % 1 < 0.12, third))
    return painted


def _checked(rng: Random, second: RGB, third: RGB) -> Painted:
    across, down, duty = rng.randint(5, 12), rng.randint(4, 10), rng.uniform(0.25, 0.5)
    painted = [(((COLUMNS * across / SIZE) % 1 < duty) != ((ROWS * down / SIZE) % 1 < duty), second)]
    if rng.random() < 0.4:
        painted.append((((COLUMNS * across / SIZE) % 1 < 0.08) | ((ROWS * down / SIZE) % 1 < 0.08), third))
    return painted


def _dotted(rng: Random, second: RGB, third: RGB) -> Painted:
    side, size = SIZE / rng.randint(7, 15), rng.uniform(0.25, 0.4)
    row = ROWS // side
    return [(np.hypot((COLUMNS + row % 2 * side / 2) % side - side / 2, ROWS % side - side / 2) < size * side, second)]


def _block(rng: Random, second: RGB, third: RGB) -> Painted:
    kind = rng.choice(("half", "band", "band", "sides"))
    if kind == "half":
        return [(rng.uniform(28, 58) < ROWS, second)]
    if kind == "sides":
        return [(np.abs(np.abs(COLUMNS - FRONT) - FRONT / 2) < rng.uniform(6, 11), second)]
    top, height = rng.uniform(20, 50), rng.uniform(7, 16)
    painted = [((top < ROWS) & (top + height > ROWS), second)]
    if rng.random() < 0.4:
        painted.append(((top + height < ROWS) & (top + height + 4 > ROWS), third))
    return painted


def _camouflage(rng: Random, second: RGB, third: RGB) -> Painted:
    painted = [(noise(rng, rng.uniform(1, 1.8)) > 0.2, second)]
    return painted + [(noise(rng, 1.4) > 0.9, tuple(0.4 * channel for channel in second))]  # type: ignore[list-item]


def _floral(rng: Random, second: RGB, third: RGB) -> Painted:
    flowers, leaves = np.zeros((2, SIZE, SIZE), bool)
    for _ in range(rng.randint(30, 90)):
        x, y, radius = rng.uniform(0, SIZE), rng.uniform(0, SIZE), rng.uniform(2.5, 7)
        across = np.abs(COLUMNS - x)
        near = np.hypot(np.minimum(across, SIZE - across), ROWS - y) < radius
        (flowers if rng.random() < 0.75 else leaves)[near] = True
    return [(flowers, second), (leaves & ~flowers, third)]


def _logo(rng: Random, second: RGB, third: RGB) -> Painted:
    """A few shapes or a row of letters on the chest, on the back, or on both."""
    places = rng.choices(((FRONT,), (0,), (FRONT, 0)), (6, 2, 2))[0]
    masks = [Image.new("1", (SIZE, SIZE)) for _ in range(2)]
    row, wide, tall = rng.uniform(28, 46), rng.uniform(8, 17), rng.uniform(6, 16)
    for _ in range(rng.randint(1, 3)):
        mask = masks[rng.random() < 0.3]
        kind = rng.choice(("box", "disc", "star", "letters"))
        w, h = wide * rng.uniform(0.5, 1), tall * rng.uniform(0.4, 1)
        x, y = rng.uniform(-3, 3), row + rng.uniform(-4, 4)
        points = [(w * math.cos(k * 1.26) * rng.uniform(0.4, 1), h * math.sin(k * 1.26)) for k in range(5)]
        letters = rng.randint(2, 5)
        for place in places:
            for column in {place, SIZE - place}:  # the back is at both edges
                draw, left = ImageDraw.Draw(mask), column + x
                if kind == "box":
                    draw.rectangle((left - w, y - h, left + w, y + h), fill=1)
                elif kind == "disc":
                    draw.ellipse((left - w, y - h, left + w, y + h), fill=1)
                elif kind == "star":
                    draw.polygon([(left + px, y + py) for px, py in points], fill=1)
                else:
                    for k in range(letters):
                        edge = left - w + k * 2 * w / letters
                        draw.rectangle((edge, y - h / 2, edge + 1.2 * w / letters, y + h / 2), fill=1)
    first, detail = (np.asarray(mask) for mask in masks)
    return [(first, second), (detail, third)]


PATTERNS: dict[str, Callable[[Random, RGB, RGB], Painted]] = {
    "striped": _striped,
    "checked": _checked,
    "dotted": _dotted,
    "block": _block,
    "camouflage": _camouflage,
    "floral": _floral,
    "logo": _logo,
}
