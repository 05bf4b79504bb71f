"""Drawing of a pedestrian in body coordinates, one garment or body part after the other."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from .attributes import COLORS, HAIR_COLORS, RGB, SKINS, Person, shade

VIEWS = ("front", "back", "left", "right")
SIZE = (128, 256)  # width x height of the drawing, twice the crop: the reduction smooths the edges

Ink = RGB | int
Fill = RGB | Image.Image
Point = tuple[float, float]


@dataclass(frozen=True)
class Stance:
    """The position of a figure in the frame. `view`: one of `VIEWS`; left and right are the walking direction.

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

    The unit is the length of the body; x points in the walking direction in a side view, else to the right.
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
        """Converts body coordinates to pixels; the feet are on the ground for every height."""
        ground = self._stance.top + self._stance.length
        tilted = math.copysign(abs(y) ** self._stance.tilt, y)
        return self._stance.center + self._mirror * x * self._girth * self._unit, ground - (1 - tilted) * self._unit

    def polygon(self, points: list[Point], fill: Fill) -> None:
        """A filled polygon."""
        corners = [self.at(*point) for point in points]
        self._put(lambda draw, ink: draw.polygon(corners, fill=ink), fill)

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Fill, radius: float = 0) -> None:
        """A filled box with rounded corners."""
        (left, top), (right, bottom) = self.at(x0, y0), self.at(x1, y1)
        corners = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
        self._put(lambda draw, ink: draw.rounded_rectangle(corners, radius * self._unit, fill=ink), fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Fill) -> None:
        """A filled ellipse around (x, y)."""
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


HIP, KNEE, ANKLE, SHOULDER = 0.49, 0.72, 0.93, 0.205
HEMS = {"coat": 0.70, "top": 0.49, "tee": 0.52, "shirt": 0.53, "sweater": 0.52, "hoodie": 0.53, "jacket": 0.53}


def draw_figure(person: Person, stance: Stance) -> tuple[Image.Image, Image.Image]:
    """Draws a person on black (RGB), with the mask of covered pixels (L, 0 or 255), both of `SIZE`."""
    sketch = Sketch(stance, person)
    profile = stance.view in ("left", "right")
    cloth, sleeve = _cloth(sketch, person, 1.0), _cloth(sketch, person, 0.82)
    swing = math.sin(stance.phase)
    if profile:
        _arm(sketch, person, sleeve, 0.0, swing, profile)
        _backpack(sketch, person, stance.view)
        _leg(sketch, person, 0.0, -swing, profile, 0.78)
        _leg(sketch, person, 0.0, swing, profile, 1.0)
    else:
        if stance.view == "front":
            _loose_hair(sketch, person, stance.view)
        for side in (-1, 1):
            _leg(sketch, person, 0.055 * side, swing * side, profile, 1.0)
    _skirt(sketch, person, profile)
    _torso(sketch, person, stance.view, cloth)
    if profile:
        _arm(sketch, person, sleeve, 0.0, -swing, profile)
    else:
        for side in (-1, 1):
            _arm(sketch, person, sleeve, 0.145 * side, -swing * side, profile)
        _backpack(sketch, person, stance.view)
    _side_bag(sketch, person, bag_side_in_image(person, stance.view), profile)
    _head(sketch, person, stance.view)
    return sketch.image, sketch.mask


def bag_side_in_image(person: Person, view: str) -> int:
    """The side of a bag in the image: -1 left, 1 right, 0 if the body hides it."""
    side = 1 if person.bag_side == "left" else -1
    if view in ("front", "back"):
        return side if view == "front" else -side
    return side if person.bag_side == view else 0


def _cloth(sketch: Sketch, person: Person, light: float) -> Fill:
    """The fill of the upper garment: a colour, or an image of the pattern that is fixed to the body."""
    first, second = shade(COLORS[person.upper_color], light), shade(COLORS[person.pattern_color], light)
    if person.pattern in ("plain", "logo"):
        return first
    image = Image.new("RGB", SIZE, first)
    draw = ImageDraw.Draw(image)
    center, top = (round(value) for value in sketch.at(0, 0.17))
    rows, columns = range(top % 18 - 18, SIZE[1], 18), range(center % 18 - 18, SIZE[0], 18)
    if person.pattern == "block":
        draw.rectangle((0, sketch.at(0, 0.35)[1], *SIZE), fill=second)
    if person.pattern == "striped":
        for y in rows:
            draw.rectangle((0, y, SIZE[0], y + 8), fill=second)
    if person.pattern == "checked":
        half = _mixed(first, second)
        for y in rows:
            draw.rectangle((0, y, SIZE[0], y + 8), fill=half)
        for x in columns:
            draw.rectangle((x, 0, x + 8, SIZE[1]), fill=half)
            for y in rows:
                draw.rectangle((x, y, x + 8, y + 8), fill=second)
    if person.pattern == "dotted":
        for row, y in enumerate(rows):
            for x in columns:
                left = x + 9 * (row % 2)
                draw.ellipse((left, y, left + 9, y + 9), fill=second)
    return image


def _leg(sketch: Sketch, person: Person, x: float, swing: float, profile: bool, light: float) -> None:
    """One leg with its shoe. `swing`: -1 (behind or standing) to 1 (in front or lifted)."""
    if profile:
        hip, knee, foot = (0.0, HIP), (0.085 * swing + 0.015, KNEE), (0.17 * swing - 0.02, ANKLE - 0.03 * abs(swing))
    else:
        lift = 0.035 * max(0.0, swing)
        hip, knee, foot = (x, HIP), (1.1 * x, KNEE - lift / 2), (x, ANKLE - lift)
    skin, cloth = shade(SKINS[person.skin], light), shade(COLORS[person.lower_color], light)
    bare = person.lower in ("shorts", "skirt")
    thick = 0.085 if person.lower == "jeans" else 0.105
    if bare:
        sketch.limb([hip, knee, foot], 0.07, skin)
        if person.lower == "shorts":
            sketch.limb([hip, _between(hip, knee, 0.85)], 0.12, cloth)
    else:
        sketch.limb([hip, knee], 0.115, cloth)
        sketch.limb([knee, foot], thick, cloth)
        if person.seam_color:
            outer = 0.035 * (1 if x > 0 else -1 if x < 0 else 0)
            path = [(px + outer, py) for px, py in (hip, knee, foot)]
            sketch.limb(path, 0.03, shade(COLORS[person.seam_color], light))
    shoe = shade(COLORS[person.shoes_color], light)
    if person.shoes == "boots":
        sketch.limb([_between(foot, knee, 0.45), foot], 0.095, shoe)
    ahead, behind = (0.1, 0.045) if profile else (0.055, 0.055)
    sketch.box(foot[0] - behind, foot[1] - 0.005, foot[0] + ahead, foot[1] + 0.06, shoe, 0.02)
    sketch.box(foot[0] - behind, foot[1] + 0.05, foot[0] + ahead, foot[1] + 0.068, COLORS[person.sole_color])


def _skirt(sketch: Sketch, person: Person, profile: bool) -> None:
    if person.lower == "skirt":
        top, bottom = (0.08, 0.12) if profile else (0.11, 0.16)
        corners = [(-top, 0.47), (top, 0.47), (bottom, 0.71), (-bottom, 0.71)]
        sketch.polygon(corners, COLORS[person.lower_color])


def _torso(sketch: Sketch, person: Person, view: str, cloth: Fill) -> None:
    """The upper garment without sleeves, its hem, and on the front an opening, a logo or an emblem."""
    hem = HEMS[person.upper]
    profile = view in ("left", "right")
    shoulder, waist, hip = (0.075, 0.085, 0.09) if profile else (0.15, 0.115, 0.125)
    if person.gender == "woman":
        waist *= 0.88
    if person.upper == "coat":
        hip *= 1.2
    sketch.limb([(0, 0.13), (0, 0.19)], 0.07, shade(SKINS[person.skin], 0.85))
    side = [(shoulder * 0.45, 0.165), (shoulder, 0.195), (waist, 0.36), (hip, 0.5), (hip * 1.03, hem)]
    sketch.polygon(side + [(-x, y) for x, y in reversed(side)], cloth)
    if person.hem_color:
        sketch.box(-hip * 1.03, hem - 0.035, hip * 1.03, hem, COLORS[person.hem_color])
    line = shade(COLORS[person.upper_color], 0.5 if sum(COLORS[person.upper_color]) > 150 else 3.0)
    if person.upper == "hoodie":
        sketch.ellipse(0, 0.175, 0.085 if view == "back" else 0.1, 0.05 if view == "back" else 0.025, line)
    if view != "front":
        return
    if person.upper in ("jacket", "coat"):
        sketch.polygon([(-0.045, 0.165), (0.045, 0.165), (0, 0.25)], (214, 214, 210))
        sketch.limb([(0, 0.25), (0, hem)], 0.02, line)
    if person.pattern == "logo":
        sketch.box(-0.06, 0.25, 0.06, 0.35, COLORS[person.pattern_color], 0.02)
    if person.emblem_side:
        x = 0.065 if person.emblem_side == "left" else -0.065
        sketch.box(x - 0.025, 0.235, x + 0.025, 0.285, COLORS[person.emblem_color], 0.01)


def _arm(sketch: Sketch, person: Person, sleeve: Fill, x: float, swing: float, profile: bool) -> None:
    if profile:
        top, elbow, hand = (0.0, SHOULDER + 0.01), (0.09 * swing - 0.02, 0.35), (0.17 * swing + 0.03, 0.47)
    else:
        top, elbow, hand = (x, SHOULDER + 0.01), (1.2 * x, 0.35), (1.2 * x, 0.48 - 0.03 * max(0.0, swing))
    skin = shade(SKINS[person.skin], 0.92)
    sketch.limb([top, elbow, hand], 0.05, skin)
    if person.sleeves == "long":
        sketch.limb([top, elbow, _between(elbow, hand, 0.85)], 0.07, sleeve)
    if person.sleeves == "short":
        sketch.limb([top, _between(top, elbow, 0.75)], 0.08, sleeve)


def _backpack(sketch: Sketch, person: Person, view: str) -> None:
    """A pack from behind, two straps from the front, a bulge on the back from the side."""
    if person.bag != "backpack":
        return
    color = COLORS[person.bag_color]
    dark = shade(color, 0.7)
    if view == "back":
        sketch.box(-0.105, 0.195, 0.105, 0.455, color, 0.035)
        sketch.box(-0.075, 0.34, 0.075, 0.435, dark, 0.02)
    elif view == "front":
        for side in (-1, 1):
            sketch.limb([(0.085 * side, 0.175), (0.09 * side, 0.37)], 0.045, color)
    else:
        sketch.box(-0.21, 0.195, -0.06, 0.455, color, 0.035)
        sketch.box(-0.21, 0.34, -0.15, 0.435, dark, 0.02)


def _side_bag(sketch: Sketch, person: Person, side: int, profile: bool) -> None:
    """A shoulder bag with its strap, or a handbag; `side` as in `bag_side_in_image`."""
    if side == 0 or person.bag not in ("shoulder bag", "handbag"):
        return
    color = COLORS[person.bag_color]
    x = 0.0 if profile else 0.17 * side
    if person.bag == "shoulder bag":
        start = (0.0, 0.175) if profile else (-0.09 * side, 0.175)
        sketch.limb([start, (0.8 * x, 0.43)], 0.03, color)
        sketch.box(x - 0.085, 0.42, x + 0.085, 0.56, color, 0.02)
        sketch.box(x - 0.085, 0.42, x + 0.085, 0.47, shade(color, 0.75), 0.02)
    else:
        x = 0.08 if profile else 0.19 * side
        sketch.limb([(x - 0.05, 0.56), (x, 0.48), (x + 0.05, 0.56)], 0.02, shade(color, 0.75))
        sketch.box(x - 0.085, 0.54, x + 0.085, 0.66, color, 0.015)


def _loose_hair(sketch: Sketch, person: Person, view: str) -> None:
    """Hair that falls to the shoulders; drawn under the face from the front, over the back from behind."""
    if person.hair_style == "long":
        hair = HAIR_COLORS[person.hair_color]
        shift = -0.03 if view in ("left", "right") else 0.0
        width = 0.045 if shift else 0.078
        sketch.box(shift - width, 0.06, shift + width, 0.25, hair, 0.03)


def _head(sketch: Sketch, person: Person, view: str) -> None:
    skin, hair = SKINS[person.skin], HAIR_COLORS[person.hair_color]
    profile = view in ("left", "right")
    if view == "front":
        sketch.ellipse(0, 0.068, 0.064, 0.07, hair)
        if person.hair_style == "long":
            for side in (-1, 1):
                sketch.box(0.055 * side - 0.022, 0.06, 0.055 * side + 0.022, 0.23, hair, 0.02)
        sketch.ellipse(0, 0.083, 0.05, 0.06, skin)
        for side in (-1, 1):
            sketch.ellipse(0.02 * side, 0.08, 0.008, 0.007, (40, 30, 30))
    elif view == "back":
        sketch.ellipse(0, 0.072, 0.064, 0.074, hair)
        _loose_hair(sketch, person, view)
    else:
        sketch.ellipse(0.012, 0.078, 0.058, 0.066, skin)
        sketch.ellipse(-0.016, 0.062, 0.056, 0.062, hair)
        _loose_hair(sketch, person, view)
    if person.hair_style == "ponytail" and view != "front":
        x = -0.075 if profile else 0.0
        sketch.limb([(x, 0.07), (x - 0.01 * profile, 0.23)], 0.05, shade(hair, 0.8 if not profile else 1.0))
    _hat(sketch, person, view)


def _hat(sketch: Sketch, person: Person, view: str) -> None:
    if person.hat is None:
        return
    color = COLORS[person.hat_color]
    dome = [(0.07 * math.cos(a), 0.052 - 0.065 * math.sin(a)) for a in (math.pi * i / 12 for i in range(13))]
    sketch.polygon(dome, color)
    dark = shade(color, 0.7)
    if person.hat == "beanie":
        sketch.box(-0.072, 0.035, 0.072, 0.062, dark, 0.01)
    elif view in ("left", "right"):
        sketch.box(0.03, 0.04, 0.13, 0.058, dark, 0.008)
    elif view == "front":
        sketch.ellipse(0, 0.054, 0.075, 0.016, dark)


def _mixed(one: RGB, other: RGB) -> RGB:
    return ((one[0] + other[0]) // 2, (one[1] + other[1]) // 2, (one[2] + other[2]) // 2)


def _between(start: Point, end: Point, share: float) -> Point:
    return (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))
