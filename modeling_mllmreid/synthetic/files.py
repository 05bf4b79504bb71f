"""The layout of a folder of rendered people, and the file that identifies it."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from ..utils.data_formats import WorldFile
from ..utils.errors import UserError
from ..utils.json_files import read_json

VERSION = 1
WORLD_FILE = "world.json"
CAPTIONS_FILE = "reid_raw.json"
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


@dataclass(frozen=True)
class WrittenPedestrians:
    """The result of `write_pedestrians`: the folder, the number of images of each split, and of captions."""

    root: Path
    train_images: int
    query_images: int
    gallery_images: int
    captions: int


def mark_rendered(root: Path, world: str) -> None:
    """Writes `world.json`, which identifies a folder of rendered people."""
    (root / WORLD_FILE).write_text(json.dumps({"world": world, "version": VERSION}) + "\n", encoding="utf-8")


def world_of(root: str | os.PathLike[str]) -> str | None:
    """The name of the world in `world.json` of a folder; None for other data."""
    path = Path(root) / WORLD_FILE
    try:
        return read_json(path, WorldFile).world if path.is_file() else None
    except (UserError, OSError):  # a file of that name from another program
        return None
