"""How a world looks: its cameras, how often something stands in the way, and how its people are painted."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from .cameras import CAMERAS, Camera

STYLES = ("flat", "outlined", "woven", "soft")


@dataclass(frozen=True)
class Palette:
    """What becomes of every named colour: `saturation` 0 is grey, `gain` multiplies the channels."""

    saturation: float = 1.0
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Look:
    """cameras: in their order; occluded: share of images with something before the person; style: of `STYLES`."""

    cameras: tuple[Camera, ...] = CAMERAS
    occluded: float = 0.2
    palette: Palette = Palette()
    style: str = "flat"


STREET = Look()


def paint(figure: Image.Image, mask: Image.Image, look: Look) -> Image.Image:
    """A drawn figure (RGB on black, with its mask) in the palette and style of a look."""
    if look.palette != Palette():
        pixels = np.asarray(figure, dtype=np.float32)
        grey = pixels.mean(axis=2, keepdims=True)
        pixels = (grey + look.palette.saturation * (pixels - grey)) * np.array(look.palette.gain, dtype=np.float32)
        figure = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if look.style == "outlined":
        # Edges between parts, and the figure's own, as dark lines.
        edges = ImageChops.lighter(
            figure.convert("L").filter(ImageFilter.FIND_EDGES), mask.filter(ImageFilter.FIND_EDGES)
        )
        lines = edges.filter(ImageFilter.MaxFilter(3)).point(lambda value: 255 - min(220, 4 * value))
        figure = ImageChops.multiply(figure, Image.merge("RGB", (lines,) * 3))
    elif look.style == "woven":
        rows, columns = np.mgrid[: figure.height, : figure.width]
        threads = np.where((rows // 3 + columns // 3) % 2 == 0, 255, 205).astype(np.uint8)
        figure = ImageChops.multiply(figure, Image.merge("RGB", (Image.fromarray(threads),) * 3))
    elif look.style == "soft":
        figure = figure.filter(ImageFilter.GaussianBlur(2.5))
    return figure
