"""One image: how the person stands before a camera, what stands between, and the rendering of it all."""

import math
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from .attributes import Person, random_person
from .cameras import SCENE, Camera, expose, scene
from .figure import draw_figure
from .look import STREET, Look, paint
from .sketch import SIZE, VIEWS, Stance

OCCLUDERS = ("post", "railing", "bin", "passer-by")


@dataclass(frozen=True)
class Shot:
    """What differs between two images of one person. `occluder`: one of `OCCLUDERS` or None.

    `occluder_x`: its place beside the body's axis, -1 to 1; `phase`: the step's angle in radians; `shift`: the crop's
    offset (x, y) in pixels of the drawing; `zoom`, `brightness`: factors; `place`: where in the scene, 0 to 1;
    `stranger`: the passer-by's looks; `noise_seed`: the sensor noise.
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
    """A random image plan for camera number `camera` (from 0) of a world's look."""
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
    """The person crop (RGB of `cameras.CROP`) of a plan; `seed` is that of the cameras' scenes."""
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
    """Draws a person into the scene, darker towards the edges and away from the light."""
    figure, mask = draw_figure(person, stance)
    figure = paint(figure, mask, look)
    across = np.clip((np.arange(SIZE[0]) - stance.center) / 40, -1, 1)
    row = 255 * (1 - 0.2 * across**2) * (1 - abs(camera.light) * (1 + np.sign(camera.light) * across) / 2)
    light = np.broadcast_to(row.astype(np.uint8)[None, :, None], (SIZE[1], SIZE[0], 3))
    canvas.paste(ImageChops.multiply(figure, Image.fromarray(np.ascontiguousarray(light))), mask=mask)


def _occlude(canvas: Image.Image, shot: Shot, stance: Stance, camera: Camera, look: Look) -> None:
    """Draws what stands before the person: nothing, a post, a railing or a bin at the feet, or a passer-by."""
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
