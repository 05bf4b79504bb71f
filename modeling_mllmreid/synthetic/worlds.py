"""The rendered worlds by name: people, clothes, cameras and style of each."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from ..utils.data_formats import WorldFile
from ..utils.errors import UserError
from ..utils.json_files import read_json
from .attributes import SLEEVES, Crowd, Person
from .cameras import CAMERAS, Camera
from .shots import STREET, Look, Palette

Dress = Callable[[Random, Person], Person]

LIGHT = ("white", "yellow", "pink", "teal", "orange", "red", "green")
DARK = ("black", "gray", "brown", "blue", "purple", "green")
# Upper garment, its colour, pattern and second colour, lower garment, its colour, shoes and their colour.
FIRMS = (
    ("shirt", "blue", "plain", "white", "trousers", "black", "boots", "black"),
    ("jacket", "orange", "block", "gray", "trousers", "gray", "boots", "brown"),
    ("tee", "green", "logo", "yellow", "trousers", "brown", "sneakers", "white"),
    ("sweater", "red", "striped", "white", "jeans", "blue", "sneakers", "black"),
)


def summer(rng: Random, person: Person) -> Person:
    """Short sleeves and bare legs in light colours, few hats and bags."""
    upper = rng.choices(("tee", "top", "shirt"), (4, 3, 2))[0]
    upper_color, pattern_color, lower_color = rng.sample(LIGHT, 3)
    bare = ("shorts", "skirt", "jeans") if person.gender == "woman" else ("shorts", "shorts", "jeans")
    return replace(
        person,
        upper=upper,
        sleeves="none" if upper == "top" else "short",
        upper_color=upper_color,
        pattern_color=pattern_color,
        lower=rng.choice(bare),
        lower_color=lower_color,
        shoes="sneakers",
        hat=rng.choices((None, "cap"), (4, 1))[0],
        bag=rng.choices((None, "shoulder bag", "handbag", "backpack"), (6, 1, 1, 1))[0],
    )


def winter(rng: Random, person: Person) -> Person:
    """Coats and jackets, beanies and boots, in dark colours."""
    upper = rng.choices(("coat", "jacket", "hoodie"), (4, 3, 1))[0]
    upper_color, pattern_color, lower_color = rng.sample(DARK, 3)
    return replace(
        person,
        upper=upper,
        sleeves="long",
        upper_color=upper_color,
        pattern_color=pattern_color,
        lower=rng.choice(("jeans", "trousers")),
        lower_color=lower_color,
        shoes=rng.choices(("boots", "sneakers"), (4, 1))[0],
        hat=rng.choices((None, "beanie"), (1, 2))[0],
        hat_color=rng.choice(DARK),
    )


def uniform(rng: Random, person: Person) -> Person:
    """The uniform of one of `FIRMS`: only hair, build, hat, bag and small details separate its people."""
    upper, upper_color, pattern, pattern_color, lower, lower_color, shoes, shoes_color = rng.choice(FIRMS)
    plain = pattern == "plain"
    return replace(
        person,
        upper=upper,
        sleeves=SLEEVES[upper][-1],
        upper_color=upper_color,
        pattern=pattern,
        pattern_color=pattern_color,
        lower=lower,
        lower_color=lower_color,
        shoes=shoes,
        shoes_color=shoes_color,
        emblem_side=person.emblem_side if plain else None,
    )


VERSION = 1


@dataclass(frozen=True)
class World:
    """A rendered data set with fixed content.

    Args:
        look (`Look`): Cameras, palette and style.
        seed (`int`): Seed of people and scenes.
        crowd (`Crowd`): The number of look-alikes.
        dress (`Callable`, *optional*): Draws the clothes of a person.
        train_identities (`int`): People of the train split.
        test_identities (`int`): People of query and gallery.
        images_per_camera (`int`): Images of each person from each camera.
        distractors (`int`): Gallery images of people who are in no query.
    """

    look: Look
    seed: int
    crowd: Crowd = Crowd()
    dress: Dress | None = None
    train_identities: int = 60
    test_identities: int = 60
    images_per_camera: int = 4
    distractors: int = 0


def _stronger(camera: Camera, power: float) -> Camera:
    """The camera with a stronger color cast and more noise."""
    red, green, blue = (gain**power for gain in camera.gain)
    return replace(camera, gain=(red, green, blue), noise=camera.noise + 0.01)


# Glaring light before sand, water and awnings.
BEACH = tuple(
    replace(camera, gain=gain, gamma=0.85, blur=0.3, light=light, wall=wall, ground=(226, 206, 160))
    for camera, gain, light, wall in (
        (CAMERAS[0], (1.06, 1.0, 0.84), 0.35, (120, 190, 226)),
        (CAMERAS[1], (0.96, 1.02, 1.0), -0.3, (110, 160, 90)),
        (CAMERAS[5], (1.02, 0.96, 1.06), 0.1, (240, 220, 190)),
        (CAMERAS[4], (1.08, 0.94, 0.9), 0.3, (230, 120, 90)),
    )
)
# Dusk over snow, through old lenses: half the resolution.
SNOW = tuple(
    replace(
        camera,
        gain=gain,
        gamma=1.1,
        saturation=0.7,
        lift=lift,
        noise=0.035,
        detail=0.5,
        wall=wall,
        ground=(206, 212, 222),
    )
    for camera, gain, lift, wall in (
        (CAMERAS[2], (0.86, 0.94, 1.08), 0.1, (150, 160, 176)),
        (CAMERAS[3], (0.8, 0.82, 1.0), 0.02, (60, 66, 90)),
        (CAMERAS[0], (0.96, 0.9, 0.92), 0.06, (130, 120, 120)),
        (CAMERAS[1], (0.84, 0.96, 1.0), 0.08, (180, 190, 196)),
    )
)
# Halls and corridors, filmed from high above.
HALLS = tuple(
    replace(camera, gain=gain, tilt=tilt, length=0.84, wall=wall, ground=ground)
    for camera, gain, tilt, wall, ground in (
        (CAMERAS[5], (0.94, 1.04, 0.9), 0.84, (232, 234, 230), (120, 126, 130)),
        (CAMERAS[2], (1.04, 0.9, 1.02), 0.86, (206, 200, 180), (90, 90, 96)),
        (CAMERAS[4], (1.0, 0.92, 0.74), 0.82, (170, 150, 120), (140, 130, 110)),
        (CAMERAS[3], (0.82, 0.9, 1.0), 0.86, (90, 100, 110), (70, 74, 80)),
    )
)

WORLDS: dict[str, World] = {
    "street": World(STREET, seed=0, train_identities=100, images_per_camera=5),
    "summer": World(Look(BEACH[:4], 0.1, Palette(1.1, (1.05, 1.02, 0.95)), "outlined"), seed=11, dress=summer),
    "winter": World(Look(SNOW, 0.25, Palette(0.75, (0.92, 0.95, 1.05)), "soft"), seed=12, dress=winter),
    "uniforms": World(Look(HALLS, 0.2, Palette(0.9), "woven"), seed=13, crowd=Crowd(copies=0), dress=uniform),
    # The hard world: four of five people are near copies of another, and every camera has another color cast.
    "lookalikes": World(
        Look(tuple(_stronger(camera, 2.5) for camera in CAMERAS), occluded=0.35),
        seed=14,
        crowd=Crowd(size=5, copies=4),
        train_identities=500,
        test_identities=500,
        images_per_camera=3,
        distractors=1000,
    ),
}


WORLD_FILE = "world.json"
# The people of the demo, in any number.
PEDESTRIANS = "pedestrians"


def mark_rendered(root: Path, world: str) -> None:
    """Writes `world.json`, which identifies a folder of rendered people."""
    (root / WORLD_FILE).write_text(json.dumps({"world": world, "version": VERSION}) + "\n", encoding="utf-8")


def rendered_source(root: str | os.PathLike[str]) -> str | None:
    """The name `rendered_WORLD` of the rendered data set in a folder; None for other data."""
    path = Path(root) / WORLD_FILE
    try:
        world = read_json(path, WorldFile).world if path.is_file() else None
    except (UserError, OSError):  # a file of that name from another program
        return None
    return f"rendered_{world}" if world in (PEDESTRIANS, *WORLDS) else None
