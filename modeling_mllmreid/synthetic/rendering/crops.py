"""One crop of a person before a camera, and how much of each layer it shows."""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image

from ..body.dressed import Dressed, dress
from ..body.mesh import Layer, unit
from ..body.poses import moment, place
from ..people.attributes import Person, make_person
from ..people.colors import WORN, cloth_color
from .backdrop import draw_backdrop
from .figure import Figure, View, draw_figure
from .filters import soften
from .scenes import Scene
from .sensor import expose
from .shots import STRANGERS, Obstacle, PasserBy, Shot


@dataclass(frozen=True)
class Crop:
    """An image and what it shows.

    Args:
        image (`Image.Image`): RGB.
        visible (`dict[str, float]`): For each layer by name, "pattern", bare "legs" and a bare "scalp": the share of
            the person's pixels that shows it. What something in front hides is not counted.
    """

    image: Image.Image
    visible: dict[str, float]


@lru_cache(maxsize=STRANGERS)
def stranger(seed: int, number: int, season: str) -> Dressed:
    """A passer-by of a world; they are in no data set."""
    return Dressed(make_person(seed, "passer-by", number, season=season))


def render(
    person: Person, shot: Shot, scene: Scene, *, seed: int, size: tuple[int, int] = (128, 64), season: str = "mild"
) -> Crop:
    """Renders a crop; a pure function of its arguments.

    Args:
        person (`Person`): Who is in the box.
        shot (`Shot`): The plan of the image.
        scene (`Scene`): The scene and its camera.
        seed (`int`): Seed of the world's passers-by.
        size (`tuple[int, int]`): Height and width in pixels.
        season (`str`): What passers-by wear.

    Returns:
        `Crop`: The image and what it shows.
    """
    dressed = dress(person)
    vertices, normals = _placed(dressed, shot)
    view = _frame(scene, shot, vertices, size)
    image = draw_backdrop(scene, view, size)
    figure = draw_figure(dressed, vertices, normals, view, scene.light, size)
    others = [_other(passer, shot, scene, view, seed, season, size) for passer in shot.passers_by]
    image = image * np.prod([each.ground for each in (figure, *others)], axis=0)[..., None]
    people = [*zip((passer.behind for passer in shot.passers_by), others, strict=True), (0.0, figure)]
    hidden = np.zeros(size, bool)
    for behind, drawn in sorted(people, key=lambda pair: -pair[0]):
        image = _over(image, drawn)
        if behind < 0:
            hidden |= drawn.layer >= 0
    if shot.obstacle is not None:
        hidden |= _put_before(image, shot.obstacle, scene)
    usual = 0.28 * float((scene.light.sky + 0.45 * scene.light.sun).mean())
    return Crop(expose(image, usual, scene.sensor, Random(shot.sensor)), _visible(figure, hidden))


def _placed(dressed: Dressed, shot: Shot) -> tuple[np.ndarray, np.ndarray]:
    """The person at their place in the scene: vertices and normals (N, 3)."""
    rng, gait = Random(shot.posture), dressed.person.body.gait
    pose = moment(rng, gait, walks=shot.walks, carries=dressed.carries, phase=shot.phase)
    vertices, normals = place(dressed, pose, shot.yaw)
    return vertices + _foot(shot), normals


def _foot(shot: Shot) -> np.ndarray:
    angle = np.radians(shot.angle)
    return np.array([shot.distance * np.sin(angle), 0, shot.distance * np.cos(angle)], np.float32)


def _other(
    passer: PasserBy, shot: Shot, scene: Scene, view: View, seed: int, season: str, size: tuple[int, int]
) -> Figure:
    """Draws a passer-by."""
    dressed, rng = stranger(seed, passer.number, season), Random(passer.seed)
    pose = moment(rng, dressed.person.body.gait, walks=rng.random() < 0.8, carries=dressed.carries)
    vertices, normals = place(dressed, pose, passer.yaw)
    away = unit(_foot(shot))
    foot = _foot(shot) + passer.behind * away + passer.aside * np.array([away[2], 0, -away[0]], np.float32)
    return draw_figure(dressed, vertices + foot, normals, view, scene.light, size)


def _frame(scene: Scene, shot: Shot, vertices: np.ndarray, size: tuple[int, int]) -> View:
    """The camera that looks at the person, scaled so that they fill the box."""
    height, width = size
    position = np.array([0, scene.height, 0], np.float32)
    forward = unit(vertices.mean(0) - position)
    right = unit(np.cross(forward, [0, 1, 0]))
    up = np.cross(right, forward)
    roll = np.radians(shot.roll)
    axes = np.stack([right * np.cos(roll) + up * np.sin(roll), up * np.cos(roll) - right * np.sin(roll), forward])
    view = View(position, axes.astype(np.float32))
    x, y, _ = view.project(vertices)
    scale_y = shot.fill * height / (y.max() - y.min())
    scale_x = scale_y * shot.squeeze
    wide = 0.97 * width / (x.max() - x.min())
    if scale_x > wide:  # a long stride in a narrow box
        scale_x = max(wide, 0.72 * scale_x)
    return view._replace(
        scale_x=float(scale_x),
        scale_y=float(scale_y),
        center_x=float(width * (0.5 + shot.shift[0]) - scale_x * (x.min() + x.max()) / 2),
        center_y=float(height * (0.5 + shot.shift[1]) - scale_y * (y.min() + y.max()) / 2),
    )


def _over(image: np.ndarray, figure: Figure) -> np.ndarray:
    """The image with a person before it, with soft edges."""
    mask = figure.layer >= 0
    cover = soften(mask.astype(np.float32))[..., None]
    softened = soften(figure.rgb) / np.maximum(cover, 0.05)
    color = np.where(mask[..., None], 0.5 * figure.rgb + 0.5 * softened, softened)
    result: np.ndarray = image * (1 - cover) + color * cover
    return result


def _put_before(image: np.ndarray, obstacle: Obstacle, scene: Scene) -> np.ndarray:
    """Paints an obstacle into the image and returns where it is (H, W)."""
    height, width = image.shape[:2]
    rng = Random(obstacle.seed)
    tile = rng.choice((scene.side[1], scene.back[2]))
    top, left = rng.randrange(64), rng.randrange(64)
    rows, columns = (np.arange(count) * 128 // width % 128 for count in (height, width))
    color = np.array(cloth_color(rng, WORN).rgb, np.float32) ** 2.2
    texture = (0.6 * tile[top + rows[:, None], left + columns] + 0.4 * color) * scene.light.sky
    covered = np.zeros((height, width), bool)
    start, end = obstacle.start, obstacle.start + obstacle.width
    if obstacle.kind == "low wall":
        middle, half = rng.uniform(0, 1) * width, obstacle.width * width / 2
        covered[int(start * height) :, max(0, int(middle - half)) : max(0, int(middle + half))] = True
    elif obstacle.kind == "post":
        covered[:, int(start * width) : max(int(start * width) + 2, int(end * width))] = True
    elif start > 0:
        covered[:, int((1 - start) * width) :] = True
    else:
        covered[:, : int(-start * width)] = True
    image[covered] = texture[covered]
    return covered


def _visible(figure: Figure, hidden: np.ndarray) -> dict[str, float]:
    """The share of the person's pixels that shows each layer and each detail."""
    person = figure.layer >= 0
    total = max(int(person.sum()), 1)
    seen = person & ~hidden
    counts = Counter(figure.layer[seen].tolist())
    shares = {layer.name.lower(): counts[layer.value] / total for layer in Layer if layer != Layer.SKIN}
    return shares | {name: int((shows & seen).sum()) / total for name, shows in figure.details.items()}
