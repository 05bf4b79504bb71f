"""The response of a camera: exposure, colours, sharpness, noise and compression."""

import io
import math
from dataclasses import dataclass
from random import Random

import numpy as np
from PIL import Image, ImageFilter

from ..body.cloth import white_noise


@dataclass(frozen=True)
class Sensor:
    """A camera's response.

    `balance`: factor on each linear channel; `exposure`: linear value that the scene's mean becomes; `gamma`,
    `saturation`, `contrast`, `lift` (haze of the lens): 1 (0 for `lift`) changes nothing; `resolution`: recorded pixels
    as a share of a crop 256 high; `blur`, `motion`: in pixels of such a crop; `sharpening`: share; `noise`: standard
    deviation, 1 is full scale; `quality`: of the JPEG compression.
    """

    balance: tuple[float, float, float]
    exposure: float
    gamma: float
    saturation: float
    contrast: float
    lift: float
    resolution: float
    blur: float
    motion: float
    sharpening: float
    noise: float
    quality: int


def draw_sensor(rng: Random) -> Sensor:
    """Draws a camera."""
    red, green, blue = (math.exp(rng.gauss(0, 0.1)) for _ in range(3))
    mean = (red + green + blue) / 3
    return Sensor(
        balance=(red / mean, green / mean, blue / mean),
        exposure=rng.uniform(0.18, 0.4),
        gamma=rng.uniform(0.8, 1.25),
        saturation=rng.uniform(0.55, 1.2),
        contrast=rng.uniform(0.8, 1.25),
        lift=rng.choice((0.0, rng.uniform(0, 0.14))),
        resolution=rng.choice((rng.uniform(0.28, 0.5), rng.uniform(0.5, 1))),
        blur=rng.uniform(0.2, 1.1),
        motion=rng.choice((0.0, rng.uniform(0, 3))),
        sharpening=rng.choice((0.0, rng.uniform(0.3, 1.3))),
        noise=rng.uniform(0.004, 0.035),
        quality=rng.randint(35, 92),
    )


def expose(linear: np.ndarray, mean: float, sensor: Sensor, rng: Random) -> Image.Image:
    """Records a linear image.

    Args:
        linear (`np.ndarray`): (H, W, 3).
        mean (`float`): The usual mean of the scene's linear values, by which the camera is set.
        sensor (`Sensor`): The camera.
        rng (`Random`): What differs from image to image.

    Returns:
        `Image.Image`: RGB, (H, W).
    """
    height, width = linear.shape[:2]
    scale = height / 256
    gain = sensor.exposure / max(mean, 1e-3) * math.exp(rng.gauss(0, 0.16))
    light = linear * gain * np.array(sensor.balance, np.float32)
    tone = np.clip(light / (1 + 0.35 * light) * 1.35, 0, 1) ** (sensor.gamma / 2.2)
    grey = tone.mean(2, keepdims=True)
    tone = ((grey + sensor.saturation * (tone - grey)) - 0.45) * sensor.contrast + 0.45
    image = _image(255 * (sensor.lift + (1 - sensor.lift) * tone))
    image = image.filter(ImageFilter.GaussianBlur(sensor.blur * scale * rng.uniform(0.7, 1.4)))
    motion = sensor.motion * scale * 0.5 * rng.random()
    if motion > 0.3:
        image = image.filter(ImageFilter.BoxBlur((motion, 0)))
    share = min(max(sensor.resolution * math.exp(rng.gauss(0, 0.2)), 0.25), 1)
    # A person far away has few pixels; a crop of 64 x 128 is at most its own size.
    small = (max(20, min(width, int(128 * share))), max(40, min(height, int(256 * share))))
    image = image.resize(small, Image.Resampling.BOX if small[1] < 0.8 * height else Image.Resampling.BILINEAR)
    if sensor.sharpening:
        image = image.filter(ImageFilter.UnsharpMask(1.5 * scale + 0.3, int(100 * sensor.sharpening), 2))
    grain = 0.7 * white_noise(rng, (small[1], small[0], 1)) + 0.5 * white_noise(rng, (small[1], small[0], 3))
    image = _image(np.asarray(image, np.float32) + 255 * sensor.noise * grain)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(min(max(sensor.quality + rng.gauss(0, 8), 25), 95)))
    return Image.open(file).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
