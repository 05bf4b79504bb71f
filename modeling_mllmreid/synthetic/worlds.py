"""The rendered worlds by name: people, scenes, seasons and cameras of each.

A world is always the same. Training worlds and test worlds have different seeds, so that they share no person, no
scene and no camera.
"""

import os
from dataclasses import dataclass

from .files import world_of
from .flat.worlds import WORLDS as FLAT_WORLDS
from .people.attributes import Crowd

# The people of the demo, in any number.
PEDESTRIANS = "pedestrians"


@dataclass(frozen=True)
class World:
    """A rendered data set with fixed content.

    Args:
        seed (`int`): Seed of people, scenes and passers-by.
        scenes (`int`): Number of scenes, each with one camera.
        cameras (`int`): Cameras that each person passes.
        images_per_camera (`int`): Images of each person from each camera.
        train_identities (`int`): People of the train split.
        test_identities (`int`): People of query and gallery.
        distractors (`int`): Gallery images of people who are in no query.
        season (`str`): What people wear, one of `SEASONS`; in "winter" the ground is white.
        crowd (`Crowd`): The number of look-alikes.
        outfits (`int`): Outfits of each person; every camera sees another one in turn.
        tracks (`bool`): Whether the images from a camera show one walk.
        size (`tuple[int, int]`): Height and width in pixels.
    """

    seed: int
    scenes: int = 24
    cameras: int = 4
    images_per_camera: int = 5
    train_identities: int = 0
    test_identities: int = 0
    distractors: int = 0
    season: str = "mild"
    crowd: Crowd = Crowd()
    outfits: int = 1
    tracks: bool = False
    size: tuple[int, int] = (128, 64)


# What `write_pedestrians` renders if nothing else is given.
DEFAULT = World(0, train_identities=100, test_identities=60)
NOBODY_ALIKE = Crowd(copies=0)
WORLDS: dict[str, World] = {
    # To train on.
    "town": World(101, scenes=120, cameras=6, images_per_camera=2, train_identities=1200, test_identities=100),
    "town_summer": World(
        102, scenes=60, cameras=6, images_per_camera=2, train_identities=600, test_identities=60, season="summer"
    ),
    "town_winter": World(
        103, scenes=60, cameras=6, images_per_camera=2, train_identities=600, test_identities=60, season="winter"
    ),
    "suburb": World(105, scenes=40, images_per_camera=2, train_identities=300, test_identities=60),
    "village": World(104, images_per_camera=5, train_identities=100, test_identities=60, crowd=NOBODY_ALIKE),
    # To test on: other people before other cameras.
    "elsewhere": World(201, scenes=40, images_per_camera=2, test_identities=150, distractors=300),
    "doubles": World(202, scenes=40, images_per_camera=2, test_identities=150, crowd=Crowd(copies=4)),
    # Other people of the same kind, to calibrate on.
    "more_doubles": World(301, scenes=40, images_per_camera=2, test_identities=150, crowd=Crowd(copies=4)),
    "wardrobe": World(
        203, scenes=24, images_per_camera=2, train_identities=300, test_identities=100, crowd=NOBODY_ALIKE, outfits=2
    ),
    "walks": World(204, scenes=24, images_per_camera=8, test_identities=60, tracks=True),
    "descriptions": World(205, scenes=40, images_per_camera=2, test_identities=200, crowd=NOBODY_ALIKE),
}


def rendered_source(root: str | os.PathLike[str]) -> str | None:
    """The name `rendered_WORLD` of the rendered data set in a folder; None for other data."""
    world = world_of(root)
    return f"rendered_{world}" if world in (PEDESTRIANS, *WORLDS, *FLAT_WORLDS) else None
