"""Scenes before a fixed camera: ground, walls, things, light and sensor, drawn from a seed.

Units are decimetres. The camera stands at (0, height, 0) and looks along +z.
"""

import math
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random

import numpy as np

from ..people.attributes import random_stream
from ..people.colors import BRIGHT, WORN, cloth_color, hsv
from .sensor import Sensor, draw_sensor
from .surfaces import surface

FAR = 1e6
# Grounds and walls of each kind of scene, and the weights of all kinds.
KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...], int]] = {
    "street": (("asphalt", "paving", "paving", "road"), ("shops", "windows", "windows", "brick", "plaster"), 9),
    "park": (("grass", "sand", "paving"), ("foliage", "foliage", "foliage", "fence"), 4),
    "yard": (("asphalt", "paving", "sand"), ("brick", "panels", "fence", "plaster", "foliage"), 4),
    "hall": (("floor", "floor", "paving"), ("panels", "shops", "plaster", "clutter"), 5),
}


@dataclass(frozen=True, eq=False)
class Light:
    """Light of a scene in linear colours: `sun` from `direction` (unit vector), `sky` from above, `fill` from one side.

    `soft`: 0 is a clear sky, 1 no shadow at all; `bounce`: share of `sky` that reaches what looks down.
    """

    direction: np.ndarray
    sun: np.ndarray
    sky: np.ndarray
    fill: np.ndarray
    fill_direction: np.ndarray
    soft: float
    bounce: float

    @property
    def casts_shadows(self) -> bool:
        """Whether the sun is strong and high enough for shadows with an edge."""
        return bool(self.sun.mean() > 0.6 and self.direction[1] > 0.2)

    @property
    def shadow(self) -> float:
        """The share of light that a shadow on the ground takes away."""
        return min(0.7, 0.3 * float(self.sun.mean())) * (1 - 0.6 * self.soft)

    def on(self, normals: np.ndarray, lit: np.ndarray | float = 1.0) -> np.ndarray:
        """The light on points with normals (P, 3), of which the share `lit` (P,) is reached by the sun."""
        above = self.bounce + (1 - self.bounce) * (0.5 + 0.5 * normals[:, 1:2])
        sun = np.clip((normals @ self.direction + self.soft) / (1 + self.soft), 0, 1) * lit
        side = np.clip(0.5 + 0.5 * normals @ self.fill_direction, 0, 1)
        result: np.ndarray = self.sky * above + sun[:, None] * self.sun + side[:, None] * self.fill
        return result


@dataclass(frozen=True, eq=False)
class Thing:
    """A box in a scene, from corner `low` to corner `high` (3,); `two_tone`: its upper half is dark, as a car's."""

    low: np.ndarray
    high: np.ndarray
    color: np.ndarray
    two_tone: bool


@dataclass(frozen=True, eq=False)
class Scene:
    """One camera and what is before it.

    Args:
        height (`float`): Height of the camera.
        near (`float`): Distance of the nearest people.
        far (`float`): Distance of the farthest people.
        paths (`tuple`): Directions in which people walk, in degrees.
        ground (`tuple`): Tile of the ground and its pixels per decimetre.
        back (`tuple`): Distance of the wall behind, its slant, its tile and pixels per decimetre.
        side (`tuple`): Distance of the walls at both sides, their tile and pixels per decimetre.
        backdrop (`np.ndarray`): (3,), linear colour of what is behind everything.
        haze (`float`): Strength of the haze.
        things (`tuple[Thing, ...]`): What stands there.
        light (`Light`): The light.
        sensor (`Sensor`): The camera's response.
    """

    height: float
    near: float
    far: float
    paths: tuple[float, ...]
    ground: tuple[np.ndarray, float]
    back: tuple[float, float, np.ndarray, float]
    side: tuple[float, np.ndarray, float]
    backdrop: np.ndarray
    haze: float
    light: Light
    sensor: Sensor
    things: tuple[Thing, ...] = field(default=())


@lru_cache(maxsize=128)
def make_scene(seed: int, number: int, snow: bool = False) -> Scene:
    """Draws scene `number` of a seed; `snow`: the ground outside is white."""
    rng = random_stream(seed, "scene", number)
    kind = rng.choices(tuple(KINDS), [weight for _, _, weight in KINDS.values()])[0]
    grounds, walls, _ = KINDS[kind]
    indoors = kind == "hall"
    height = rng.choices((rng.uniform(14, 25), rng.uniform(25, 45), rng.uniform(45, 75)), (4, 4, 2))[0]
    near = rng.uniform(28, 60) + 0.6 * height
    far = near + rng.uniform(15, 120)
    open_behind = not indoors and rng.random() < 0.15
    distance = FAR if open_behind else far + rng.uniform(4, 120)
    coarseness = max(10.0, min(distance, 200.0) / 10)
    ground = "snow" if snow and not indoors else rng.choice(grounds)
    return Scene(
        height=height,
        near=near,
        far=far,
        paths=tuple(rng.uniform(0, 360) for _ in range(rng.randint(1, 2))),
        ground=(surface(rng, ground), rng.uniform(0.7, 3.5)),
        back=(distance, rng.uniform(-0.5, 0.5), surface(rng, rng.choice(walls)), rng.uniform(3, 16) / coarseness),
        side=(
            rng.uniform(15, 60) if rng.random() < 0.5 else FAR,
            surface(rng, rng.choice(walls)),
            rng.uniform(1.6, 8),
        ),
        backdrop=np.array(hsv(rng.uniform(0.52, 0.62), rng.uniform(0, 0.25), rng.uniform(0.6, 1)), np.float32) ** 2.2,
        haze=rng.choice((0.0, rng.uniform(0, 0.2))),
        light=_light(rng, indoors),
        sensor=draw_sensor(rng),
        things=tuple(_thing(rng, kind, near, far) for _ in range(rng.randint(0, 8))),
    )


def _tint(rng: Random, strength: float) -> np.ndarray:
    return np.exp([rng.gauss(0, strength) for _ in range(3)]).astype(np.float32)


def _light(rng: Random, indoors: bool) -> Light:
    sunny = not indoors and rng.random() < 0.45
    rise, around = math.radians(rng.uniform(25, 80)), rng.uniform(0, 2 * math.pi)
    direction = (math.cos(rise) * math.cos(around), math.sin(rise), math.cos(rise) * math.sin(around))
    side = np.array([rng.gauss(0, 1) for _ in range(3)])
    return Light(
        direction=np.array(direction, np.float32),
        sun=(rng.uniform(1.2, 3) if sunny else rng.uniform(0.1, 0.6))
        * _tint(rng, 0.05)
        * np.array([1.05, 1, 0.92], np.float32),
        sky=rng.uniform(0.5, 1.1) * _tint(rng, 0.06),
        fill=rng.uniform(0, 0.35) * _tint(rng, 0.1),
        fill_direction=(side / np.linalg.norm(side)).astype(np.float32),
        soft=rng.uniform(0, 0.2) if sunny else rng.uniform(0.3, 0.8),
        bounce=rng.uniform(0.2, 0.6),
    )


def _thing(rng: Random, kind: str, near: float, far: float) -> Thing:
    """A car, a post, or a box such as a bench or a bin."""
    share = rng.random()
    if kind == "street" and share < 0.4:
        size = np.array([rng.uniform(16, 22), rng.uniform(12, 18), rng.uniform(38, 48)])
        size = size[[2, 1, 0]] if rng.random() < 0.5 else size
    elif share < 0.55:
        size = np.array([1.2, 60, 1.2]) * rng.uniform(0.6, 1.6)
    else:
        size = np.array([rng.uniform(4, 22), rng.uniform(4, 18), rng.uniform(4, 22)])
    foot = np.array([rng.uniform(-45, 45), 0, rng.uniform(0.6 * near, far + 60)])
    color = np.array(cloth_color(rng, BRIGHT if rng.random() < 0.25 else WORN).rgb, np.float32) ** 2.2
    half = size * [0.5, 0, 0.5]
    return Thing(foot - half, foot + half + size * [0, 1, 0], color, size[2] > 30 or size[0] > 30)
