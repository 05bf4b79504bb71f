"""Finds the shipped files: `configs/` and `model_cards/` are at the top of a checkout, or in the installed package."""

import difflib
import os
from pathlib import Path

from .errors import UserError

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent
CONFIGS, MODEL_CARDS = ROOT / "configs", ROOT / "model_cards"
DEEPSPEED_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"


def shipped_configs() -> dict[str, dict[str, Path]]:
    """Returns the recipes, Accelerate files and DeepSpeed files; each kind by name without suffix."""
    patterns = {"recipes": "*.yaml", "accelerate": "accelerate/*.yaml", "deepspeed": "deepspeed/*.json"}
    return {kind: {path.stem: path for path in sorted(CONFIGS.glob(pattern))} for kind, pattern in patterns.items()}


def recipe_path(text: str, command: str) -> Path:
    """Returns the YAML file that the first argument of a command names: a path, or the name of a shipped recipe.

    A file in the working directory takes precedence over a recipe. Raises UserError with the most similar recipes if
    the text names neither.
    """
    if not text or os.sep in text or os.path.isfile(text):
        return Path(text)
    recipes = shipped_configs()["recipes"]
    name = text.removesuffix(".yaml")
    if name in recipes:
        return recipes[name]
    if os.path.exists(text):
        return Path(text)
    nearest = ", ".join(difflib.get_close_matches(name[:80].lower(), recipes, 3, cutoff=0.0))
    raise UserError(f"{command}: {text[:80]}: no such file and no such recipe: did you mean one of {nearest}?")


def find_deepspeed_file() -> None:
    """Makes the path of a shipped DeepSpeed file absolute in the environment.

    A shipped Accelerate file names it relative to the folder above `configs/`; DeepSpeed looks for it in the working
    directory.
    """
    name = os.environ.get(DEEPSPEED_FILE)
    if name and not os.path.exists(name) and (ROOT / name).is_file():
        os.environ[DEEPSPEED_FILE] = str(ROOT / name)
