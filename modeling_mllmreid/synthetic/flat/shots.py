"""One image of a pedestrian: the look of the world, the pose before the camera, occlusion, and the rendering."""

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from .attributes import Person, random_person
from .cameras import CAMERAS, SCENE, Camera, expose, scene
from .figure import SIZE, VIEWS, Stance, draw_figure

STYLES = ("flat", "outlined", "woven", "soft")


@dataclass(frozen=True)
class Palette:
    """A change of every colour: `saturation` 0 is grey, `gain` multiplies the channels."""

    saturation: float = 1.0
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Look:
    """The look of a world.

    Args:
        cameras (`tuple[Camera, ...]`): Its cameras, in order.
        occluded (`float`): Share of images with an object before the person.
        palette (`Palette`): Change of the colours of people.
        style (`str`): Painting style, one of `STYLES`.
    """

    cameras: tuple[Camera, ...] = CAMERAS
    occluded: float = 0.2
    palette: Palette = Palette()
    style: str = "flat"


STREET = Look()


def paint(figure: Image.Image, mask: Image.Image, look: Look) -> Image.Image:
    """Applies the palette and style of a look to a drawn figure (RGB on black, with its mask)."""
    if look.palette != Palette():
        pixels = np.asarray(figure, dtype=np.float32)
        grey = pixels.mean(axis=2, keepdims=True)
        pixels = (grey + look.palette.saturation * (pixels - grey)) * np.array(look.palette.gain, dtype=np.float32)
        figure = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if look.style == "outlined":
        # Dark lines at the edges of garments and of the figure.
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


OCCLUDERS = ("post", "railing", "bin", "passer-by")


@dataclass(frozen=True)
class Shot:
    """The differences between two images of one person. `occluder`: one of `OCCLUDERS` or None.

    `occluder_x`: its offset from the body's axis, -1 to 1; `phase`: the step's angle in radians; `shift`: the crop's
    offset (x, y) in pixels of the drawing; `zoom`, `brightness`: factors; `place`: position in the scene, 0 to 1;
    `stranger`: seed of the passer-by; `noise_seed`: seed of the sensor noise.
    """

    camera: int
    view: str
    occluder: str | None
    occluder_x: float
    phase: float
    shift: tuple[float, float]
    zoom: float
    brightness: float
    place: float
    stranger: int
    noise_seed: int


def plan_shot(rng: Random, camera: int, look: Look = STREET) -> Shot:
    """Draws the shot of an image for camera number `camera` (from 0) of a look."""
    occluder = rng.choice(OCCLUDERS) if rng.random() < look.occluded else None
    return Shot(
        camera=camera,
        view=rng.choices(VIEWS, look.cameras[camera].views)[0],
        occluder=occluder,
        occluder_x=rng.choice((-1, 1)) * rng.uniform(0.5, 1.0),
        phase=rng.uniform(0, 2 * math.pi),
        shift=(rng.uniform(-7, 7), rng.uniform(-6, 6)),
        zoom=rng.uniform(0.96, 1.03),
        brightness=rng.uniform(0.85, 1.15),
        place=rng.random(),
        stranger=rng.getrandbits(32),
        noise_seed=rng.getrandbits(32),
    )


def render(person: Person, shot: Shot, *, seed: int, look: Look = STREET) -> Image.Image:
    """Renders the crop of a person, RGB of `cameras.CROP`.

    Args:
        person (`Person`): The attributes.
        shot (`Shot`): The shot.
        seed (`int`): Seed of the scenes.
        look (`Look`): The look of the world.

    Returns:
        `Image.Image`: The crop.
    """
    camera = look.cameras[shot.camera]
    canvas = _background(shot, seed, camera)
    stance = _stance(shot, camera)
    _cast_shadow(canvas, stance)
    _place(canvas, person, stance, camera, look)
    _occlude(canvas, shot, stance, camera, look)
    return expose(canvas, camera, brightness=shot.brightness, noise_seed=shot.noise_seed)


def _background(shot: Shot, seed: int, camera: Camera) -> Image.Image:
    width, height = SIZE[0] // 2, SIZE[1] // 2
    left = int(shot.place * (SCENE[0] - width))
    top = int((SCENE[1] - height) / 2 - shot.shift[1])
    return (
        scene(seed, shot.camera, camera)
        .crop((left, top, left + width, top + height))
        .resize(SIZE, Image.Resampling.BILINEAR)
    )


def _stance(shot: Shot, camera: Camera) -> Stance:
    length = camera.length * shot.zoom * SIZE[1]
    sole = 0.96 * SIZE[1] + shot.shift[1]
    center = SIZE[0] / 2 + shot.shift[0]
    return Stance(shot.view, center, sole - length, length, camera.tilt, shot.phase)


def _cast_shadow(canvas: Image.Image, stance: Stance) -> None:
    sole = stance.top + stance.length
    box = (stance.center - 38, sole - 8, stance.center + 38, sole + 10)
    mask = Image.new("L", SIZE)
    ImageDraw.Draw(mask).ellipse(box, fill=90)
    canvas.paste((0, 0, 0), mask=mask)


def _place(canvas: Image.Image, person: Person, stance: Stance, camera: Camera, look: Look) -> None:
    """Draws a person into the scene, darker at the edges and away from the light."""
    figure, mask = draw_figure(person, stance)
    figure = paint(figure, mask, look)
    across = np.clip((np.arange(SIZE[0]) - stance.center) / 40, -1, 1)
    row = 255 * (1 - 0.2 * across**2) * (1 - abs(camera.light) * (1 + np.sign(camera.light) * across) / 2)
    light = np.broadcast_to(row.astype(np.uint8)[None, :, None], (SIZE[1], SIZE[0], 3))
    canvas.paste(ImageChops.multiply(figure, Image.fromarray(np.ascontiguousarray(light))), mask=mask)


def _occlude(canvas: Image.Image, shot: Shot, stance: Stance, camera: Camera, look: Look) -> None:
    """Draws the object before the person: none, a post, a railing or a bin at the feet, or a passer-by."""
    draw, sole = ImageDraw.Draw(canvas), stance.top + stance.length
    dark = tuple(channel // 2 for channel in camera.ground)
    if shot.occluder == "post":
        x = stance.center + 34 * shot.occluder_x
        draw.rectangle((x - 6, 0, x + 6, SIZE[1]), fill=dark)
    elif shot.occluder == "railing":
        top = sole - 52
        for y in (top, top + 20, top + 40):
            draw.rectangle((0, y, SIZE[0], y + 6), fill=dark)
        for x in range(int(8 * shot.occluder_x) % 16, SIZE[0], 16):
            draw.rectangle((x, top, x + 4, SIZE[1]), fill=dark)
    elif shot.occluder == "bin":
        x = stance.center + 6 * shot.occluder_x
        draw.rounded_rectangle((x - 46, sole - 44, x + 46, SIZE[1] + 8), 6, fill=dark)
        draw.rectangle((x - 50, sole - 50, x + 50, sole - 42), fill=camera.clutter[0])
    elif shot.occluder == "passer-by":
        rng = Random(shot.stranger)
        view = rng.choice(VIEWS)
        center = stance.center + (52 + 10 * abs(shot.occluder_x)) * (1 if shot.occluder_x > 0 else -1)
        near = Stance(view, center, stance.top + 14, stance.length, stance.tilt, rng.uniform(0, 2 * math.pi))
        _place(canvas, random_person(rng), near, camera, look)
