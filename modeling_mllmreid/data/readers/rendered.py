"""The rendered worlds: fixed synthetic data sets, which the reader renders at first use.

data_dir/                      the layout of Market-1501; person 0 is a distractor
    bounding_box_train/ query/ bounding_box_test/
    reid_raw.json              captions of all images
    world.json                 the name of the world and its version
"""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from datasets import DatasetDict

from ...synthetic.worlds import VERSION, WORLD_FILE, WORLDS
from ...synthetic.write import CAPTIONS_FILE, write_world
from ...utils.data_formats import WorldFile
from ...utils.errors import UserError
from ...utils.json_files import read_json
from ..contract import Problems
from .market1501 import FOLDERS, MARKET1501, MarketLayout, read_market_layout


def read_rendered(world: str, data_dir: str | os.PathLike[str], *, problems: Problems | None = None) -> DatasetDict:
    """Reads a rendered world with its captions. If the folder is missing or empty, the world is rendered first.

    Args:
        world (`str`): a name of `WORLDS`.
        data_dir (`str` or `os.PathLike`): the folder of the world.
        problems (`Problems`, *optional*): collects the images that cannot be used.

    Returns:
        `DatasetDict`: `train`, `query` and `gallery`.

    Raises:
        UserError: the folder has other content, another world, another version, or is not complete.
    """
    root, name = Path(data_dir), f"rendered_{world}"
    if not os.path.lexists(root) or _is_empty(root):
        print(f"{name}: rendering into {root}", flush=True)
        try:
            write_world(root, world)
        except UserError:
            # Another process may have rendered the same world at the same time.
            if not os.path.isfile(root / WORLD_FILE):
                raise
    try:
        existing = read_json(root / WORLD_FILE, WorldFile)
    except UserError as error:
        raise UserError(
            f"{root}: no valid {WORLD_FILE}, so the folder is not the data set {name}: give a new folder"
        ) from error
    if (existing.world, existing.version) != (world, VERSION):
        raise UserError(
            f"{root}: has the world {existing.world!r}, version {existing.version}, not {world!r}, version {VERSION}: "
            "give another folder, or remove this one to render it again"
        )
    missing = [path for path in (*FOLDERS.values(), CAPTIONS_FILE) if not os.path.lexists(root / path)]
    if missing:
        raise UserError(f"{root}: {', '.join(missing)} of {name} is missing: remove the folder to render it again")
    spec = MarketLayout(
        source=name,
        title=name,
        folders=FOLDERS,
        archive=(),
        name=MARKET1501.name,
        example=MARKET1501.example,
        distractors=True,
    )
    return read_market_layout(spec, root, captions_file=root / CAPTIONS_FILE, problems=problems)


def _is_empty(root: Path) -> bool:
    """Returns whether the path is an empty folder. Raises UserError if it cannot be listed."""
    try:
        return os.path.isdir(root) and not os.listdir(root)
    except OSError as error:
        raise UserError(f"{root}: cannot be listed ({error.strerror}): give a readable folder") from error


RENDERED: dict[str, Callable[..., DatasetDict]] = {
    f"rendered_{world}": partial(read_rendered, world) for world in WORLDS
}
