"""The mark of rendered people: `world.json` in their folder, by which they are known whatever reader reads them."""

import json
import os
from pathlib import Path

from ...errors import UserError
from ...formats import WorldFile, read_json
from .worlds import VERSION, WORLDS

WORLD_FILE = "world.json"
# The demo's people, of which there are as many as its user wants.
PEDESTRIANS = "pedestrians"


def mark_rendered(root: Path, world: str) -> None:
    """Writes the mark into a folder of rendered people."""
    (root / WORLD_FILE).write_text(json.dumps({"world": world, "version": VERSION}) + "\n", encoding="utf-8")


def rendered_source(root: str | os.PathLike[str]) -> str | None:
    """The name of the rendered set in a folder, `rendered_WORLD`, or None for any other data."""
    path = Path(root) / WORLD_FILE
    try:
        world = read_json(path, WorldFile).world if path.is_file() else None
    except (UserError, OSError):  # another program's file of that name
        return None
    return f"rendered_{world}" if world in (PEDESTRIANS, *WORLDS) else None
