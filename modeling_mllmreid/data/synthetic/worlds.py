"""The fixed worlds by name: who walks there, dressed how, before which cameras, painted in which style."""

from dataclasses import dataclass, replace

from .attributes import Crowd
from .cameras import CAMERAS, Camera
from .look import STREET, Look, Palette
from .wardrobes import Dress, summer, uniform, winter

VERSION = 1


@dataclass(frozen=True)
class World:
    """A data set that is always the same. distractors: gallery images of people who are in no query."""

    look: Look
    seed: int
    crowd: Crowd = Crowd()
    dress: Dress | None = None
    train_identities: int = 60
    test_identities: int = 60
    images_per_camera: int = 4
    distractors: int = 0


def _stronger(camera: Camera, power: float) -> Camera:
    """The camera with its white balance pushed further from neutral, as old and badly set ones are."""
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
    # The hard one: four of five people are near copies of another, and the cameras disagree about every colour.
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
