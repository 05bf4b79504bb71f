"""The cameras: the scene, views and scale of each, and its colours, sharpness and noise."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .attributes import RGB, random_stream, shade

CROP = (64, 128)  # width x height of a person crop
SCENE = (420, 148)  # wider than a crop: every image shows a different section


@dataclass(frozen=True)
class Camera:
    """One fixed camera.

    `views`: weights of `sketch.VIEWS`; `length`: crown to sole in crop heights; `tilt`: as in `sketch.Stance`;
    `gain`: white balance per channel, applied after `gamma`; `saturation`: 0 is grey; `lift`: added light (haze);
    `blur`: Gaussian sigma in pixels; `noise`: standard deviation, 1 being full scale; `light`: side shading, -1 to 1;
    `wall`, `ground`, `clutter`: the scene's colours; `foliage`: the clutter is round instead of upright. `detail`: the
    recorded resolution, as a share of the crop's.
    """

    views: tuple[float, float, float, float]
    length: float
    tilt: float
    gain: tuple[float, float, float]
    gamma: float
    saturation: float
    lift: float
    blur: float
    noise: float
    light: float
    wall: RGB
    ground: RGB
    clutter: tuple[RGB, ...]
    foliage: bool = False
    detail: float = 1.0


CAMERAS = (
    Camera(  # a shopping street in low sun
        views=(5, 2, 1.5, 1.5),
        length=0.92,
        tilt=1.0,
        gain=(1.04, 0.97, 0.82),
        gamma=0.94,
        saturation=1.0,
        lift=0.0,
        blur=0.4,
        noise=0.015,
        light=0.25,
        wall=(196, 170, 140),
        ground=(150, 146, 140),
        clutter=((120, 50, 40), (230, 220, 190), (60, 80, 110), (40, 44, 48), (190, 120, 60)),
    ),
    Camera(  # a park path under trees
        views=(1.5, 5, 2, 2),
        length=0.87,
        tilt=0.95,
        gain=(0.84, 0.98, 0.89),
        gamma=1.05,
        saturation=0.96,
        lift=0.01,
        blur=0.7,
        noise=0.02,
        light=-0.2,
        wall=(70, 120, 60),
        ground=(176, 160, 126),
        clutter=((30, 80, 30), (90, 150, 60), (120, 160, 90), (70, 56, 40), (150, 170, 120)),
        foliage=True,
    ),
    Camera(  # a station hall, hazy and bluish
        views=(2, 2, 4, 4),
        length=0.9,
        tilt=0.9,
        gain=(0.91, 0.97, 1.05),
        gamma=0.92,
        saturation=0.86,
        lift=0.07,
        blur=0.5,
        noise=0.015,
        light=0.1,
        wall=(200, 206, 210),
        ground=(168, 176, 184),
        clutter=((90, 110, 140), (240, 240, 240), (120, 130, 136), (200, 60, 50), (230, 200, 80)),
    ),
    Camera(  # a car park at night
        views=(3, 3, 2, 2),
        length=0.93,
        tilt=0.97,
        gain=(0.89, 0.78, 0.84),
        gamma=1.03,
        saturation=1.0,
        lift=0.0,
        blur=0.7,
        noise=0.025,
        light=-0.3,
        wall=(70, 70, 84),
        ground=(60, 58, 62),
        clutter=((30, 30, 36), (130, 120, 100), (90, 30, 34), (40, 60, 90), (210, 200, 150)),
    ),
    Camera(  # a brick yard under a yellow lamp
        views=(2, 4, 2, 2),
        length=0.89,
        tilt=0.93,
        gain=(0.98, 0.94, 0.72),
        gamma=1.0,
        saturation=0.96,
        lift=0.02,
        blur=0.6,
        noise=0.025,
        light=0.3,
        wall=(150, 78, 60),
        ground=(120, 110, 104),
        clutter=((110, 50, 40), (180, 100, 80), (60, 60, 64), (214, 204, 180), (80, 40, 36)),
    ),
    Camera(  # a bright lobby with a magenta cast
        views=(4, 2, 2, 2),
        length=0.91,
        tilt=0.98,
        gain=(1.03, 0.91, 1.0),
        gamma=0.9,
        saturation=0.92,
        lift=0.03,
        blur=0.5,
        noise=0.015,
        light=-0.15,
        wall=(224, 222, 214),
        ground=(196, 190, 180),
        clutter=((140, 150, 160), (250, 250, 250), (90, 100, 90), (160, 130, 90), (60, 70, 80)),
    ),
)


@lru_cache(maxsize=16)
def scene(seed: int, number: int, camera: Camera) -> Image.Image:
    """Draws the background of camera `number` (from 0): a wall, clutter before it, and the ground; RGB of `SCENE`."""
    rng = random_stream(seed, "scene", number)
    width, height = SCENE
    horizon = rng.randint(62, 78)
    image = Image.new("RGB", SCENE, camera.wall)
    draw = ImageDraw.Draw(image)
    for x in range(0, width, 60):
        tone = shade(rng.choice((camera.wall, *camera.clutter)), rng.uniform(0.7, 1.2))
        draw.rectangle((x, 0, x + rng.randint(40, 60), horizon), fill=tone)
    for _ in range(40):
        color, x = rng.choice(camera.clutter), rng.randrange(-20, width)
        if camera.foliage:
            y, radius = rng.randint(-10, horizon), rng.randint(6, 22)
            draw.ellipse((x, y - radius, x + 2 * radius, y + radius), fill=color)
        else:
            y, wide, tall = rng.randint(-20, horizon - 8), rng.randint(6, 34), rng.randint(12, 60)
            draw.rectangle((x, y, x + wide, min(y + tall, horizon)), fill=color)
    draw.rectangle((0, horizon, width, height), fill=camera.ground)
    for step in range(9):
        y = horizon + step * (step + 3)
        tone = shade(camera.ground, rng.uniform(0.8, 1.15))
        draw.line((0, y, width, y + rng.randint(-4, 4)), fill=tone, width=1 + step // 2)
    for _ in range(14):
        x, y = rng.randrange(width), rng.randint(horizon, height)
        tone = shade(camera.ground, rng.uniform(0.7, 1.2))
        draw.ellipse((x, y, x + rng.randint(14, 60), y + rng.randint(3, 9)), fill=tone)
    return image.filter(ImageFilter.GaussianBlur(1.2))


def expose(image: Image.Image, camera: Camera, *, brightness: float, noise_seed: int) -> Image.Image:
    """Applies a camera's gamma, white balance, saturation, haze, blur and noise to an image.

    Args:
        image (`Image.Image`): RGB, twice as high and wide as a crop.
        camera (`Camera`): The camera.
        brightness (`float`): Exposure of this image; 1 is the usual one.
        noise_seed (`int`): Seed of the sensor noise.

    Returns:
        `Image.Image`: RGB of `CROP`.
    """
    pixels = np.asarray(image.reduce(2), dtype=np.float32) / 255
    pixels = pixels**camera.gamma * np.float32(brightness) * np.array(camera.gain, dtype=np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = camera.lift + (1 - camera.lift) * (grey + camera.saturation * (pixels - grey))
    blurred = Image.fromarray(_bytes(pixels)).filter(ImageFilter.GaussianBlur(camera.blur))
    if camera.detail < 1:
        small = (round(CROP[0] * camera.detail), round(CROP[1] * camera.detail))
        blurred = blurred.resize(small, Image.Resampling.BOX).resize(CROP, Image.Resampling.BILINEAR)
    noise = np.random.default_rng(noise_seed).standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(_bytes(np.asarray(blurred, dtype=np.float32) / 255 + camera.noise * noise))


def _bytes(pixels: np.ndarray) -> np.ndarray:
    """Pixels from 0 to 1 as bytes."""
    return np.asarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))
