"""The file that identifies a folder of rendered people."""

import json
import os
from pathlib import Path

from ..utils.data_formats import WorldFile
from ..utils.errors import UserError
from ..utils.json_files import read_json

VERSION = 1
WORLD_FILE = "world.json"
CAPTIONS_FILE = "reid_raw.json"


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
