"""The plan of one image: where a person is and moves, how the box lies around them, and who or what else is there."""

import math
from dataclasses import dataclass, replace
from random import Random

from .scenes import Scene

WALKERS = 0.75  # share of people who walk
STRANGERS = 32  # the number of a world's passers-by
OBSTACLES = ("low wall", "post", "wall edge")


@dataclass(frozen=True)
class PasserBy:
    """Another person in the image.

    `number`: of the world's passers-by; `aside`, `behind`: where they are, seen from the person, in decimetres; a
    negative `behind` is nearer to the camera; `yaw`: their direction in degrees; `seed` of their posture.
    """

    number: int
    aside: float
    behind: float
    yaw: float
    seed: int


@dataclass(frozen=True)
class Obstacle:
    """A thing before the person. `kind`: one of `OBSTACLES`; `start`, `width`: shares of the image's side; `seed`."""

    kind: str
    start: float
    width: float
    seed: int


@dataclass(frozen=True)
class Shot:
    """The plan of one image.

    `distance` (decimetres) and `angle` (degrees): where the person is, seen from the camera; `yaw`: the direction they
    face in degrees, 0 towards the camera's wall behind it; `walks`; `phase`: the moment of the step, 0 to 1, or None;
    `fill`: height of the person as a share of the box; `shift` (x, y): of the box, in shares of its sides; `roll` in
    degrees; `squeeze`: width over height of the pixels; `passers_by`; `obstacle`; `posture`, `sensor`: seeds.
    """

    distance: float
    angle: float
    yaw: float
    walks: bool
    phase: float | None
    fill: float
    shift: tuple[float, float]
    roll: float
    squeeze: float
    passers_by: tuple[PasserBy, ...]
    obstacle: Obstacle | None
    posture: int
    sensor: int


def plan_shot(rng: Random, scene: Scene) -> Shot:
    """Draws the plan of an image.

    Args:
        rng (`Random`): The stream of this image.
        scene (`Scene`): Where it is taken.

    Returns:
        `Shot`: The plan.
    """
    free = rng.random() < 0.25
    along = rng.choice(scene.paths) + rng.choice((0, 180)) + rng.gauss(0, 18)
    return Shot(
        distance=rng.uniform(scene.near, scene.far),
        angle=rng.uniform(-26, 26),
        yaw=rng.uniform(0, 360) if free else along,
        walks=rng.random() < WALKERS,
        phase=None,
        fill=rng.uniform(0.82, 0.97) if rng.random() < 0.8 else rng.uniform(0.68, 1.12),
        shift=(rng.gauss(0, 0.04), rng.gauss(0, 0.023)),
        roll=rng.gauss(0, 2.5),
        squeeze=math.exp(rng.gauss(0.02, 0.09)),
        passers_by=_passers_by(rng),
        obstacle=_obstacle(rng) if rng.random() < 0.12 else None,
        posture=rng.getrandbits(32),
        sensor=rng.getrandbits(32),
    )


def plan_track(rng: Random, scene: Scene, images: int) -> list[Shot]:
    """Draws a walk through a camera: the plans of images a third of a second apart.

    Args:
        rng (`Random`): The stream of this walk.
        scene (`Scene`): Where it is taken.
        images (`int`): The number of images.

    Returns:
        `list[Shot]`: The plans in the order of time.
    """
    first = replace(plan_shot(rng, scene), walks=True)
    step = 4.5  # decimetres in a third of a second
    radians = math.radians(first.yaw)
    x, z = (first.distance * f(math.radians(first.angle)) for f in (math.sin, math.cos))
    phase = rng.random()
    shots = []
    for number in range(images):
        shots.append(
            replace(
                first,
                distance=max(math.hypot(x, z), 0.7 * scene.near),
                angle=max(-40.0, min(40.0, math.degrees(math.atan2(x, z)))),
                phase=(phase + 0.31 * number) % 1,
                fill=min(1.12, first.fill * math.exp(rng.gauss(0, 0.02))),
                shift=(first.shift[0] + rng.gauss(0, 0.015), first.shift[1] + rng.gauss(0, 0.01)),
                obstacle=first.obstacle if rng.random() < 0.5 else None,
                sensor=rng.getrandbits(32),
            )
        )
        x, z = x + step * math.sin(radians), z + step * math.cos(radians)
    return shots


def view_of(shot: Shot) -> str:
    """From where the camera sees the person: "front", "back" or "side"."""
    away = math.cos(math.radians(shot.yaw - shot.angle))
    return "front" if away < -0.7 else "back" if away > 0.7 else "side"


def _passers_by(rng: Random) -> tuple[PasserBy, ...]:
    """One or two people behind, or one who is partly before the person."""
    people = []
    if rng.random() < 0.35:
        for _ in range(rng.randint(1, 2)):
            people.append((rng.uniform(-18, 18), rng.uniform(8, 90)))
    if rng.random() < 0.08:
        people.append((rng.choice((-1, 1)) * rng.uniform(3.5, 6), rng.uniform(-14, -5)))
    return tuple(
        PasserBy(rng.randrange(STRANGERS), aside, behind, rng.uniform(0, 360), rng.getrandbits(32))
        for aside, behind in people
    )


def _obstacle(rng: Random) -> Obstacle:
    kind = rng.choices(OBSTACLES, (45, 30, 25))[0]
    if kind == "low wall":
        return Obstacle(kind, rng.uniform(0.55, 0.9), rng.uniform(0.4, 1.6), rng.getrandbits(32))
    if kind == "post":
        return Obstacle(kind, rng.uniform(0, 1), rng.uniform(0.04, 0.2), rng.getrandbits(32))
    return Obstacle(kind, rng.choice((-1, 1)) * rng.uniform(0.15, 0.45), 1, rng.getrandbits(32))
