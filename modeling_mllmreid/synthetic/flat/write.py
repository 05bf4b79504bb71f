"""Writing of synthetic pedestrians as Market-1501 folders, with captions in the schema of CUHK-PEDES."""

import json
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ...utils.errors import UserError
from ...utils.outputs import atomic_folder
from ..files import CAPTIONS_FILE, FOLDERS, WrittenPedestrians, mark_rendered
from .attributes import make_person, random_stream
from .captions import tokenize, write_captions
from .shots import plan_shot, render
from .worlds import WORLDS, World

STREET = WORLDS["street"]


def write_pedestrians(
    root: Path,
    *,
    train_identities: int = 100,
    test_identities: int = 60,
    images_per_camera: int = 5,
    cameras: int = 4,
    seed: int = 0,
    captions_per_image: int = 2,
    world: World = STREET,
    named: str | None = None,
) -> WrittenPedestrians:
    """Renders people of a world: 64 x 128 JPEG crops in Market-1501 layout, and their captions in `reid_raw.json`.

    Person ids count from 1, test identities after the training ones; cameras count from 1. The first image of every
    test identity and camera is a query, the others are in the gallery. The files are a pure function of the arguments;
    a person does not depend on the number of others. The folder appears once it is complete.

    Args:
        root (`Path`): The new folder.
        train_identities (`int`): People of the train split.
        test_identities (`int`): People of query and gallery.
        images_per_camera (`int`): Images of each person from each camera.
        cameras (`int`): Number of cameras.
        seed (`int`): Seed of people and scenes.
        captions_per_image (`int`): Captions of each image.
        world (`World`): Look, crowd, dress and distractors (person 0, in the gallery).
        named (`str`, *optional*): Name of the world in `world.json`, which identifies the folder for readers.

    Returns:
        `WrittenPedestrians`: The folder and its numbers of images and captions.

    Raises:
        UserError: For a `root` that is not empty, and for a number out of range.
    """
    root = Path(root)
    _check(root, train_identities, test_identities, images_per_camera, cameras, captions_per_image, world)
    people = [("train", index, index + 1) for index in range(train_identities)]
    people += [("test", index, train_identities + index + 1) for index in range(test_identities)]
    distractors = [(index, index % cameras) for index in range(world.distractors)]
    with atomic_folder(root) as partial:
        for folder in FOLDERS:
            (partial / folder).mkdir()
        records: list[dict[str, Any]] = []
        for group, index, person_id in tqdm(people, desc="pedestrians", unit="person", disable=None):
            for camera in range(cameras):
                for shot in range(images_per_camera):
                    image = (person_id, group, index, camera, shot)
                    records.append(_write_image(partial, *image, seed, captions_per_image, world))
        for index, camera in distractors:
            records.append(
                _write_image(partial, 0, "distractor", index, camera, index + 1, seed, captions_per_image, world)
            )
        (partial / CAPTIONS_FILE).write_text(json.dumps(records), encoding="utf-8")
        if named:
            mark_rendered(partial, named)
    train, query, gallery = (sum(r["file_path"].startswith(f"{folder}/") for r in records) for folder in FOLDERS)
    return WrittenPedestrians(root, train, query, gallery, len(records) * captions_per_image)


def write_world(root: Path, name: str) -> WrittenPedestrians:
    """Renders the world of a name into a new folder, with its fixed numbers of people, cameras and images."""
    world = WORLDS[name]
    return write_pedestrians(
        root,
        train_identities=world.train_identities,
        test_identities=world.test_identities,
        images_per_camera=world.images_per_camera,
        cameras=4 if name == "street" else len(world.look.cameras),
        seed=world.seed,
        world=world,
        named=name,
    )


def _write_image(
    root: Path, person_id: int, group: str, index: int, camera: int, number: int, seed: int, captions: int, world: World
) -> dict[str, Any]:
    """Writes one JPEG; returns its record in the captions file."""
    person = make_person(seed, group, index, world.crowd, world.dress)
    shot = plan_shot(random_stream(seed, group, "shot", index, camera, number), camera, world.look)
    folder = FOLDERS[0] if group == "train" else FOLDERS[1] if number == 0 else FOLDERS[2]
    path = f"{folder}/{person_id:04d}_c{camera + 1}s1_{25 * number + 1:06d}_01.jpg"
    render(person, shot, seed=seed, look=world.look).save(root / path, quality=90)
    split = "train" if group == "train" else "test"
    texts = write_captions(person, shot, captions, random_stream(seed, group, "captions", index, camera, number))
    tokens = [tokenize(text) for text in texts]
    return {"split": split, "captions": texts, "file_path": path, "processed_tokens": tokens, "id": person_id}


def _check(root: Path, train: int, test: int, images: int, cameras: int, captions: int, world: World) -> None:
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} is not an empty folder: give a new folder or empty this one")
    ranges = {
        "train_identities": (train, 0, 9999 - test),
        "test_identities": (test, 0, 9999),
        "images_per_camera": (images, 1, 9999),
        "cameras": (cameras, 1, len(world.look.cameras)),
        "captions_per_image": (captions, 0, 100),
    }
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise UserError(f"{name} is {value}: give {low} to {high}")
