"""The rendered worlds: fixed synthetic data sets, which the reader renders at first use.

data_dir/                      the layout of Market-1501; person 0 is a distractor
    bounding_box_train/ query/ bounding_box_test/
    reid_raw.json              captions of all images
    world.json                 the name of the world and its version
"""

import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from datasets import Dataset, DatasetDict

from ...synthetic.files import CAPTIONS_FILE, VERSION, WORLD_FILE
from ...synthetic.flat.worlds import WORLDS as FLAT_WORLDS
from ...synthetic.flat.write import write_world as write_flat_world
from ...synthetic.worlds import WORLDS, World
from ...synthetic.write import write_world
from ...utils.data_formats import WorldFile
from ...utils.errors import UserError
from ...utils.json_files import read_json
from ..contract import Problems
from .market1501 import FOLDERS, MARKET1501, MarketLayout, read_market_layout

# The number of the outfit follows the camera in a file name.
OUTFIT = re.compile("_c[0-9]+s([0-9]+)_")


def read_rendered(world: str, data_dir: str | os.PathLike[str], *, problems: Problems | None = None) -> DatasetDict:
    """Reads a rendered world with its captions. If the folder is missing or empty, the world is rendered first.

    Args:
        world (`str`): a name of `WORLDS`, or of the flat worlds.
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
            (write_world if world in WORLDS else write_flat_world)(root, world)
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
    trained_on = world in FLAT_WORLDS or WORLDS[world].train_identities
    folders = [folder for split, folder in FOLDERS.items() if trained_on or split != "train"]
    missing = [path for path in (*folders, CAPTIONS_FILE) if not os.path.lexists(root / path)]
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
    dataset = read_market_layout(spec, root, captions_file=root / CAPTIONS_FILE, problems=problems)
    if world not in WORLDS:
        return dataset
    return DatasetDict({name: _with_numbers(split, WORLDS[world]) for name, split in dataset.items()})


def _with_numbers(split: Dataset, world: World) -> Dataset:
    """Adds the clothes, of a world with several outfits, and the tracks, of a world of walks, from the file names."""
    outfits = [int(OUTFIT.search(name)[1]) for name in split["file_name"][:]]  # type: ignore[index]
    persons, cameras = split["person_id"][:], split["camera_id"][:]
    if world.outfits > 1:
        clothes = [person * world.outfits + outfit - 1 for person, outfit in zip(persons, outfits, strict=True)]
        split = split.add_column("clothes_id", clothes)
    if world.tracks:
        tracks = [person * world.scenes + camera - 1 for person, camera in zip(persons, cameras, strict=True)]
        split = split.add_column("track_id", tracks)
    return split


def _is_empty(root: Path) -> bool:
    """Returns whether the path is an empty folder. Raises UserError if it cannot be listed."""
    try:
        return os.path.isdir(root) and not os.listdir(root)
    except OSError as error:
        raise UserError(f"{root}: cannot be listed ({error.strerror}): give a readable folder") from error


RENDERED: dict[str, Callable[..., DatasetDict]] = {
    f"rendered_{world}": partial(read_rendered, world) for world in (*WORLDS, *FLAT_WORLDS)
}
