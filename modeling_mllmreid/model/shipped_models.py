"""The models that come with the package: a name stands for a folder in `pretrained/`."""

import difflib
import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

# Absent where these files travel in a checkpoint.
PRETRAINED = Path(__file__).parents[1] / "pretrained"
# Similarity of a name above which it is taken for a misspelt one, not for a name on the Hub.
MISSPELT = 0.8


def shipped_models() -> list[str]:
    """Returns the names of the models that come with the package."""
    return sorted(path.parent.name for path in PRETRAINED.glob("*/config.json"))


def shipped_folder(name: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Returns the folder of a model that comes with the package, and any other name unchanged.

    A folder of that name in the working directory takes precedence, with a warning.

    Args:
        name (`str` or `os.PathLike`):
            Name of the model, such as "pedestrians-small", a folder, or a name on the Hub.

    Returns:
        `str` or `os.PathLike`

    Raises:
        ValueError: for a name that is almost that of such a model.
    """
    models = shipped_models()
    if os.path.exists(name):
        if name in models:
            logger.warning(
                f"{name}: the folder in the working directory is used, not the model of that name in the package"
            )
        return name
    if name in models:
        return str(PRETRAINED / name)
    if isinstance(name, str) and "/" not in name and (near := difflib.get_close_matches(name, models, 1, MISSPELT)):
        raise ValueError(f"{name}: no such folder, and no model of the package: did you mean {near[0]}?")
    return name


def shipped_onnx(folder: str | os.PathLike[str]) -> Path | None:
    """Returns the ONNX file of a model that comes with the package, which gives the embeddings of its other files.

    Args:
        folder (`str` or `os.PathLike`):
            Folder of a model, as `shipped_folder` returns it.

    Returns:
        `Path`, or `None` for a model that does not come with the package.
    """
    return Path(folder, "model.onnx") if Path(folder).parent == PRETRAINED else None


def shipped_name(folder: str) -> str:
    """Returns the name of a model that comes with the package by its folder there, and any other folder unchanged."""
    path = Path(folder)
    return path.name if path.parent == PRETRAINED else folder
