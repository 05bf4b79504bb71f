"""Colours with the name that a caption gives them: a name stands for a range of shades, and ranges do not touch."""

import colorsys
from dataclasses import dataclass
from random import Random

RGB = tuple[float, float, float]
Range = tuple[float, float]

# Hue (0 to 1, red at 0), saturation and value of the shades of each name.
CLOTH: dict[str, tuple[Range, Range, Range]] = {
    "black": ((0.0, 1.0), (0.0, 0.25), (0.04, 0.17)),
    "gray": ((0.0, 1.0), (0.0, 0.08), (0.3, 0.68)),
    "white": ((0.0, 1.0), (0.0, 0.06), (0.86, 0.98)),
    "blue": ((0.56, 0.66), (0.45, 0.9), (0.22, 0.8)),
    "red": ((-0.03, 0.015), (0.65, 0.95), (0.4, 0.88)),
    "green": ((0.26, 0.41), (0.3, 0.8), (0.22, 0.65)),
    "brown": ((0.04, 0.09), (0.4, 0.65), (0.22, 0.46)),
    "beige": ((0.08, 0.12), (0.18, 0.32), (0.66, 0.88)),
    "yellow": ((0.125, 0.16), (0.55, 0.9), (0.78, 0.96)),
    "orange": ((0.045, 0.08), (0.75, 0.95), (0.75, 0.96)),
    "pink": ((0.88, 0.97), (0.25, 0.5), (0.78, 0.96)),
    "purple": ((0.72, 0.8), (0.35, 0.75), (0.25, 0.6)),
    "teal": ((0.47, 0.52), (0.45, 0.8), (0.35, 0.65)),
}
HAIR: dict[str, tuple[Range, Range, Range]] = {
    "black": ((0.0, 0.1), (0.0, 0.25), (0.05, 0.1)),
    "brown": ((0.05, 0.08), (0.45, 0.6), (0.18, 0.36)),
    "blond": ((0.1, 0.13), (0.4, 0.55), (0.62, 0.82)),
    "ginger": ((0.03, 0.05), (0.65, 0.8), (0.42, 0.58)),
    "gray": ((0.0, 0.1), (0.0, 0.06), (0.5, 0.8)),
}
# Sombre colours are what most people wear.
WORN = dict(zip(CLOTH, (26, 15, 13, 13, 6, 5, 5, 5, 3, 2, 3, 2, 2), strict=True))
BRIGHT = dict(zip(CLOTH, (8, 8, 14, 11, 10, 8, 4, 7, 8, 6, 7, 5, 4), strict=True))
SKINS: tuple[RGB, ...] = (
    (0.96, 0.80, 0.72),
    (0.91, 0.72, 0.60),
    (0.84, 0.64, 0.50),
    (0.72, 0.52, 0.39),
    (0.56, 0.38, 0.27),
    (0.42, 0.28, 0.20),
    (0.31, 0.20, 0.14),
)


@dataclass(frozen=True)
class Color:
    """A shade and its name; `rgb` is in sRGB, 0 to 1."""

    name: str
    rgb: RGB


def cloth_color(rng: Random, weights: dict[str, int] = WORN, avoid: tuple[str, ...] = ()) -> Color:
    """Draws a colour of clothes whose name is none of `avoid`."""
    names = [name for name in weights if name not in avoid]
    return shade_of(rng, CLOTH, rng.choices(names, [weights[name] for name in names])[0])


def shade_of(rng: Random, names: dict[str, tuple[Range, Range, Range]], name: str) -> Color:
    """Draws a shade of a name."""
    hue, saturation, value = (rng.uniform(low, high) for low, high in names[name])
    return Color(name, hsv(hue, saturation, value))


def hsv(hue: float, saturation: float, value: float) -> RGB:
    """sRGB of a hue (any number, 1 is a full turn), saturation and value, which are cut to 0..1."""
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return (red, green, blue)
