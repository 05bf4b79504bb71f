"""The folders `configs/` and `model_cards/`: at the top of a checkout, inside the package once it is installed."""

import difflib
import os
from pathlib import Path

from .errors import UserError

PACKAGE = Path(__file__).parents[1]
ROOT = PACKAGE if (PACKAGE / "configs").is_dir() else PACKAGE.parent
CONFIGS, MODEL_CARDS = ROOT / "configs", ROOT / "model_cards"
DEEPSPEED_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"


def shipped_configs() -> dict[str, dict[str, Path]]:
    """Every shipped file by its name without the suffix: recipes, files of Accelerate, files of DeepSpeed."""
    patterns = {"recipes": "*.yaml", "accelerate": "accelerate/*.yaml", "deepspeed": "deepspeed/*.json"}
    return {kind: {path.stem: path for path in sorted(CONFIGS.glob(p))} for kind, p in patterns.items()}


def recipe_path(text: str, command: str) -> Path:
    """The YAML file that a command's first argument names: a path, or a shipped recipe where no such file is here.

    Raises UserError with the nearest names for a name that is neither.
    """
    if not text or os.sep in text or os.path.isfile(text):
        return Path(text)
    recipes = shipped_configs()["recipes"]
    name = text.removesuffix(".yaml")
    if name in recipes:
        return recipes[name]
    if os.path.exists(text):
        return Path(text)
    near = ", ".join(difflib.get_close_matches(name[:80], recipes, 3, cutoff=0.0))
    raise UserError(f"{command}: {text[:80]}: no such file and no such recipe: did you mean one of {near}?")


def find_deepspeed_file() -> None:
    """Makes the DeepSpeed file that a shipped Accelerate file names relative to `configs/` a path from the root.

    DeepSpeed itself looks in the working directory, which is any folder once the package is installed.
    """
    name = os.environ.get(DEEPSPEED_FILE)
    if name and not os.path.exists(name) and (ROOT / name).is_file():
        os.environ[DEEPSPEED_FILE] = str(ROOT / name)
