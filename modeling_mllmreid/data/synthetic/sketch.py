"""A small drawing board in body coordinates: polygons, boxes, ellipses and limbs with a coverage mask beside them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .attributes import RGB, Person

VIEWS = ("front", "back", "left", "right")
SIZE = (128, 256)  # width x height of the drawing, twice the crop: the reduction smooths the edges

Ink = RGB | int
Fill = RGB | Image.Image
Point = tuple[float, float]


@dataclass(frozen=True)
class Stance:
    """How a figure stands in the frame. `view`: one of `VIEWS`; left and right: where the walker heads.

    `center`: x of the body's axis, `top`: y of the crown, `length`: crown to sole at average height, all in pixels of
    the drawing; `tilt` below 1 shortens the legs as a high camera does; `phase`: the step's angle in radians.
    """

    view: str
    center: float
    top: float
    length: float
    tilt: float
    phase: float


class Sketch:
    """A drawing of one figure: colours and a coverage mask, in body coordinates (x from the axis, y from the crown).

    Both are in units of the body's length; x points where a walker seen from the side heads, else right.
    """

    def __init__(self, stance: Stance, person: Person) -> None:
        self.image = Image.new("RGB", SIZE)
        self.mask = Image.new("L", SIZE)
        self._draw, self._cover = ImageDraw.Draw(self.image), ImageDraw.Draw(self.mask)
        self._stance = stance
        self._unit = stance.length * person.height
        self._girth = person.girth
        self._mirror = -1 if stance.view == "left" else 1

    def at(self, x: float, y: float) -> Point:
        """Body coordinates to pixels; the feet stay on the ground whatever the person's height."""
        ground = self._stance.top + self._stance.length
        tilted = math.copysign(abs(y) ** self._stance.tilt, y)
        return self._stance.center + self._mirror * x * self._girth * self._unit, ground - (1 - tilted) * self._unit

    def polygon(self, points: list[Point], fill: Fill) -> None:
        corners = [self.at(*point) for point in points]
        self._put(lambda draw, ink: draw.polygon(corners, fill=ink), fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Fill, radius: float = 0) -> None:
        (left, top), (right, bottom) = self.at(x0, y0), self.at(x1, y1)
        corners = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        self._put(lambda draw, ink: draw.rounded_rectangle(corners, radius * self._unit, fill=ink), fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Fill) -> None:
        (left, top), (right, bottom) = self.at(x - rx, y - ry), self.at(x + rx, y + ry)
        corners = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        self._put(lambda draw, ink: draw.ellipse(corners, fill=ink), fill)

    def limb(self, points: list[Point], width: float, fill: Fill) -> None:
        """A thick line with round joints through `points`."""
        path = [self.at(*point) for point in points]
        thick = max(1, round(width * self._girth * self._unit))

        def stroke(draw: ImageDraw.ImageDraw, ink: Ink) -> None:
            draw.line(path, fill=ink, width=thick, joint="curve")
            for x, y in path[:: len(path) - 1] if thick > 3 else ():
                draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=ink)

        self._put(stroke, fill)

    def _put(self, stroke: Callable[[ImageDraw.ImageDraw, Ink], None], fill: Fill) -> None:
        stroke(self._cover, 255)
        if isinstance(fill, Image.Image):
            stencil = Image.new("L", SIZE)
            stroke(ImageDraw.Draw(stencil), 255)
            self.image.paste(fill, mask=stencil)
        else:
            stroke(self._draw, fill)
