"""The rendered worlds: fixed synthetic data sets, rendered into their folder where they are not there yet.

data_dir/                      Market-1501's layout, person 0 a distractor
    bounding_box_train/ query/ bounding_box_test/
    reid_raw.json              captions of every image
    world.json                 which world, and its version
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from datasets import DatasetDict

from ...synthetic.worlds import VERSION, WORLD_FILE, WORLDS
from ...synthetic.write import CAPTIONS_FILE, write_world
from ...utils.errors import UserError
from ...utils.formats import WorldFile
from ...utils.json_files import read_json
from ..contract import Problems
from .market1501 import FOLDERS, MARKET1501, NamedFiles, read_named_files


def read_rendered(world: str, data_dir: str | os.PathLike[str], *, problems: Problems | None = None) -> DatasetDict:
    """A world of `WORLDS` with its captions; a folder that is missing or empty is rendered first.

    Raises UserError for a folder that holds something else, another world, another version or a part of it.
    """
    root, name = Path(data_dir), f"rendered_{world}"
    if not os.path.lexists(root) or _is_empty(root):
        print(f"{name}: rendered into {root}", flush=True)
        try:
            write_world(root, world)
        except UserError:
            # Another process may have rendered the same world meanwhile.
            if not os.path.isfile(root / WORLD_FILE):
                raise
    try:
        found = read_json(root / WORLD_FILE, WorldFile)
    except UserError as error:
        raise UserError(
            f"{root}: no {WORLD_FILE} in it that names a world, so not the data set {name}: give a new folder"
        ) from error
    there, version = found.world, found.version
    if (there, version) != (world, VERSION):
        raise UserError(
            f"{root}: holds the world {there!r}, version {version}, not {world!r}, version {VERSION}: give another "
            "folder, or remove this one to render it anew"
        )
    missing = [part for part in (*FOLDERS.values(), CAPTIONS_FILE) if not os.path.lexists(root / part)]
    if missing:
        raise UserError(f"{root}: {', '.join(missing)} of {name} is missing: remove the folder to render it anew")
    spec = NamedFiles(
        source=name,
        title=name,
        folders=FOLDERS,
        archive=(),
        name=MARKET1501.name,
        example=MARKET1501.example,
        distractors=True,
    )
    return read_named_files(spec, root, captions_file=root / CAPTIONS_FILE, problems=problems)


def _is_empty(root: Path) -> bool:
    try:
        return os.path.isdir(root) and not os.listdir(root)
    except OSError as error:
        raise UserError(f"{root}: cannot be listed ({error.strerror}): give a readable folder") from error


RENDERED: dict[str, Callable[..., DatasetDict]] = {
    f"rendered_{world}": partial(read_rendered, world) for world in WORLDS
}
