"""Writing of rendered people as Market-1501 folders, with captions in the schema of CUHK-PEDES."""

import json
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..utils.errors import UserError
from ..utils.outputs import atomic_folder
from ..utils.ranges import MOST_PIXELS, MOST_PROCESSES
from .files import CAPTIONS_FILE, FOLDERS, WrittenPedestrians, mark_rendered
from .people.attributes import SEASONS, Crowd, Person, change_clothes, make_person, random_stream
from .people.captions import seen_items, tokenize, write_captions
from .rendering.crops import render
from .rendering.scenes import make_scene
from .rendering.shots import Shot, plan_shot, plan_track, view_of
from .workers import map_in_processes, useful_processes
from .worlds import DEFAULT, WORLDS, World


@dataclass(frozen=True)
class Walker:
    """A person to render: `group` and `index` are those of `make_person`, `person_id` the number in file names."""

    group: str
    index: int
    person_id: int


def write_pedestrians(
    root: Path,
    world: World = DEFAULT,
    *,
    captions_per_image: int = 2,
    named: str | None = None,
    processes: int | None = None,
    **changes: Any,
) -> WrittenPedestrians:
    """Renders people as JPEG crops in Market-1501 layout, with captions and further columns in `reid_raw.json`.

    Person ids count from 1, test identities after the training ones; cameras count from 1. The first image of every
    test identity and camera is a query, the others are in the gallery. The files are a pure function of the world;
    a person does not depend on the number of others. The folder appears once it is complete.

    Args:
        root (`Path`): The new folder.
        world (`World`): People, scenes and cameras.
        captions_per_image (`int`): Captions of each image.
        named (`str`, *optional*): Name of the world in `world.json`, which identifies the folder for readers.
        processes (`int`, *optional*): Number of processes; by default as many as render the people fastest. The files
            do not depend on it.
        changes: Fields of `world` with other values.

    Returns:
        `WrittenPedestrians`: The folder and its numbers of images and captions.

    Raises:
        UserError: For a `root` that is not empty, for a number out of range, and if a process is killed.
    """
    root, world = Path(root), replace(world, **changes)
    if processes is None:
        processes = useful_processes(world.train_identities + world.test_identities + world.distractors)
    _check(root, world, captions_per_image, processes)
    walkers = [Walker("train", index, index + 1) for index in range(world.train_identities)]
    walkers += [Walker("test", index, world.train_identities + index + 1) for index in range(world.test_identities)]
    walkers += [Walker("distractor", index, 0) for index in range(world.distractors)]
    records: list[dict[str, Any]] = []
    with atomic_folder(root) as partial_root:
        folders = [*FOLDERS[: 1 if world.train_identities else 0], *(FOLDERS[1:] if world.test_identities else ())]
        for folder in folders:
            (partial_root / folder).mkdir()
        plan = {"root": str(partial_root), "world": asdict(world), "captions": captions_per_image}
        jobs = [plan | {"walker": asdict(walker)} for walker in walkers]
        with closing(map_in_processes(write_person, jobs, processes)) as results:
            for written in tqdm(results, total=len(walkers), unit="person", disable=None):
                records += written
        (partial_root / CAPTIONS_FILE).write_text(json.dumps(records), encoding="utf-8")
        if named:
            mark_rendered(partial_root, named)
    train, query, gallery = (sum(r["file_path"].startswith(f"{folder}/") for r in records) for folder in FOLDERS)
    return WrittenPedestrians(root, train, query, gallery, len(records) * captions_per_image)


def write_world(root: Path, name: str) -> WrittenPedestrians:
    """Renders the world of a name into a new folder, with its fixed numbers of people, cameras and images."""
    return write_pedestrians(root, WORLDS[name], named=name)


def write_person(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Writes all images of a person; returns their records in the captions file.

    Args:
        job (`dict[str, Any]`): Values that JSON can write: `root`, the folder; the fields of `world` and of `walker`;
            `captions` of each image.
    """
    root, captions, walker = Path(job["root"]), job["captions"], Walker(**job["walker"])
    fields = job["world"]
    world = World(**{**fields, "crowd": Crowd(**fields["crowd"]), "size": tuple(fields["size"])})
    group, index = walker.group, walker.index
    first = make_person(world.seed, group, index, world.crowd, world.season)
    clothes = [first]
    for number in range(1, world.outfits):
        clothes.append(change_clothes(world.seed, f"{group} {number}", index, first, world.season))
    rng = random_stream(world.seed, group, "cameras", index)
    distractor = group == "distractor"
    records = []
    for number, camera in enumerate(rng.sample(range(world.scenes), 1 if distractor else world.cameras)):
        scene = make_scene(world.seed, camera, world.season == "winter")
        outfit = number % world.outfits
        stream = random_stream(world.seed, group, "shots", index, camera)
        count = 1 if distractor else world.images_per_camera
        shots = plan_track(stream, scene, count) if world.tracks else [plan_shot(stream, scene) for _ in range(count)]
        for frame, shot in enumerate(shots):
            is_query = group == "test" and frame == 0
            folder = FOLDERS[0] if group == "train" else FOLDERS[1] if is_query else FOLDERS[2]
            time = 25 * (index + 1 if distractor else frame) + 1
            path = f"{folder}/{walker.person_id:04d}_c{camera + 1}s{outfit + 1}_{time:06d}_01.jpg"
            record = _write_image(root / path, clothes[outfit], shot, scene, world, captions, stream)
            split = "train" if group == "train" else "test"
            record |= {"split": split, "file_path": path, "id": walker.person_id}
            records.append(record)
    return records


def _write_image(
    path: Path, person: Person, shot: Shot, scene: Any, world: World, captions: int, stream: Any
) -> dict[str, Any]:
    """Writes one JPEG; returns its captions."""
    crop = render(person, shot, scene, seed=world.seed, size=world.size, season=world.season)
    crop.image.save(path, quality=92)
    texts = write_captions(person, seen_items(crop.visible), view_of(shot), captions, stream)
    return {"captions": texts, "processed_tokens": [tokenize(text) for text in texts]}


def _check(root: Path, world: World, captions: int, processes: int) -> None:
    """Raises UserError for a folder that is not empty, and for numbers out of range."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} is not an empty folder: give a new folder or empty this one")
    ranges = {
        "test_identities": (0, 9999),
        "train_identities": (0 if world.test_identities else 1, 9999 - world.test_identities),
        "distractors": (0, 9999 if world.test_identities else 0),
        # The first image of a test identity is a query: without a second one the gallery has none of this camera.
        "images_per_camera": (2 if world.test_identities else 1, 9999),
        "scenes": (1, 999),
        "cameras": (1, world.scenes),
        "outfits": (1, world.cameras),
        "height": (1, MOST_PIXELS),
        "width": (1, MOST_PIXELS),
        "crowd.size": (1, 9999),
        "crowd.copies": (0, world.crowd.size - 1),
    }
    ranges |= {"captions_per_image": (0, 100), "processes": (1, MOST_PROCESSES)}
    height, width = world.size
    values = asdict(world) | {"captions_per_image": captions, "processes": processes, "height": height, "width": width}
    values |= {"crowd.size": world.crowd.size, "crowd.copies": world.crowd.copies}
    for name, (low, high) in ranges.items():
        if not low <= values[name] <= high:
            raise UserError(f"{name} is {values[name]}: give {low} to {high}")
    if world.season not in SEASONS:
        raise UserError(f"season is {world.season!r}: give one of {', '.join(SEASONS)}")
