"""Writes the help of a command: its fields by concern, the most important on `--help`, all on `--help_all`."""

import json
import re
import shutil
import sys
import textwrap
from argparse import SUPPRESS, Action
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from enum import Enum
from pathlib import Path
from typing import Any

from ..utils.ranges import Range

# Fields of a large class that `--help` shows, in this order. It shows every field of the other classes.
SHOWN_FIRST = {
    "ModelArguments": ("model", "dtype"),
    "DataArguments": ("dataset", "data_dir", "captions_file"),
    "MethodArguments": ("height", "width", "test_feature", "reid_on", "loss_lambda", "pooling"),
    "BatchArguments": ("texts", "target", "val_identities"),
    "OnnxArguments": (),
    "LeakArguments": (),
    "LicenceArguments": (),
    "AdapterArguments": ("language_model", "tower", "quantize"),
    "TinyArguments": ("patch_size", "hidden_size", "pretraining_steps"),
    "ReIDTrainingArguments": (
        "output_dir",
        "identities_per_batch",
        "images_per_identity",
        "num_train_epochs",
        "max_steps",
        "learning_rate",
        "learning_rates",
        "bf16",
        "activation_checkpointing",
        "resume_from_checkpoint",
        "seed",
    ),
}
# Fields whose empty default a command refuses.
REQUIRED = {"train": ("output_dir",)}
STOCK_CLASS, STOCK_HEADING = "ReIDTrainingArguments", "Further arguments of transformers' TrainingArguments"
VALUES = {int: "N", float: "X", bool: "true|false", dict: "JSON"}
MOST_COLUMNS, LEAST_COLUMNS, VALUE_WIDTH = 120, 60, 20
# What a command takes in front of its fields, where that is not a recipe.
FIRST_ARGUMENTS = {"convert": "FILE or config.yaml"}
# A long list of names in brackets: `--help` leaves it out.
LONG_BRACKETS = re.compile(r" \([^()]{60,}\)")


def program_name() -> str:
    """Returns the name the program was called by: `mllmreid`, `run_reid.py` or `python -m modeling_mllmreid`."""
    name = Path(sys.argv[0]).name
    return "python -m modeling_mllmreid" if name == "__main__.py" else name


def help_text(
    dataclasses: Sequence[Any],
    command: str,
    actions: Mapping[str, Action],
    ranges: Mapping[str, Range | None],
    *,
    recipe: Mapping[str, Any],
    everything: bool = False,
) -> str:
    """Writes the usage line, and a group of fields for each dataclass.

    Args:
        dataclasses (`Sequence`):
            Dataclasses of the command, in the order of the groups.
        command (`str`):
            Name of the command.
        actions (`Mapping[str, Action]`):
            Flag of each field that the command uses, by name of the field.
        ranges (`Mapping[str, Range | None]`):
            Range of each field, by name of the field.
        recipe (`Mapping[str, Any]`):
            Values that a recipe sets; the help shows them as the defaults.
        everything (`bool`, *optional*, defaults to `False`):
            Whether to show all fields with their whole help, or only those of `SHOWN_FIRST` with the first sentence.

    Returns:
        `str`: The help, wrapped to the width of the terminal.
    """
    first = FIRST_ARGUMENTS.get(command, "recipe or config.yaml")
    lines = [f"usage: {program_name()} {command} [{first}] [--field value ...]"]
    method = [kind for kind in dataclasses if kind.__name__ == "MethodArguments"]
    new_models = _defaults_of_new_models([field.name for kind in method for field in fields(kind)])
    left_out = 0
    for heading, group, shown in _groups(dataclasses, actions, everything):
        left_out += len(group) - len(shown)
        if shown:
            lines += [*([""] if everything else []), f"{heading}:"]
        for field in shown:
            required = field.default is MISSING and field.default_factory is MISSING
            required |= field.name in REQUIRED.get(command, ())
            required &= field.name not in recipe
            action = actions[field.name]
            default = _plain(recipe.get(field.name, new_models.get(field.name, action.default)))
            lines += _lines(
                field.name,
                action,
                ranges.get(field.name),
                default,
                required=required,
                everything=everything,
            )
    if left_out:
        lines += [f"{left_out} more fields: {program_name()} {command} --help_all"]
    return "\n".join(lines)


def _groups(
    dataclasses: Sequence[Any], actions: Mapping[str, Action], everything: bool
) -> Iterator[tuple[str, list[Field[Any]], list[Field[Any]]]]:
    """Yields each concern as (heading, its fields, the fields to show)."""
    for kind in dataclasses:
        used = [field for field in fields(kind) if field.name in actions and actions[field.name].help != SUPPRESS]
        heading = _first_sentence(str(kind.__doc__)).replace("`", "")
        if not everything:
            by_name = {field.name: field for field in used}
            first: Collection[str] = SHOWN_FIRST.get(kind.__name__, by_name)
            yield heading, used, [by_name[name] for name in first if name in by_name]
        elif kind.__name__ == STOCK_CLASS:
            own = [field for field in used if field.name in kind.__annotations__]
            yield heading, own, own
            stock = [field for field in used if field.name not in kind.__annotations__]
            yield STOCK_HEADING, stock, stock
        else:
            yield heading, used, used


def _lines(
    name: str, action: Action, within: Range | None, default: Any, *, required: bool, everything: bool
) -> list[str]:
    """Returns the lines of a field: its flag, value, help, choices, default and range, wrapped to the terminal."""
    text = " ".join(str(action.help or "").split())
    if not everything:
        text = _first_sentence(LONG_BRACKETS.sub("", text)).partition("; ")[0]
    choices = [str(_plain(choice)) for choice in action.choices or ()]
    value = "|".join(choices) if choices else VALUES.get(_kind(action), "TEXT")
    notes = []
    if choices and len(value) > VALUE_WIDTH:
        value = "TEXT"
        notes.append(", ".join(choices))
    value = str(action.metavar or (within.in_short(value) if within else value))
    if default not in (None, "", [], {}) and not required:
        notes.append(f"default: {_as_flag_value(default)}")
    flag = f"  --{name} {value}{' ...' if action.nargs == '+' else ''}"
    described = f"{'Required. ' if required else ''}{text}" + (f" [{'; '.join(notes)}]" if notes else "")
    columns = max(LEAST_COLUMNS, min(shutil.get_terminal_size((MOST_COLUMNS, 40)).columns, MOST_COLUMNS))
    indent = 38 if columns >= 100 else 10
    body = textwrap.wrap(described, columns - indent, break_on_hyphens=False) or [""]
    if len(flag) + 2 > indent:
        return [flag, *(" " * indent + line for line in body)]
    return [f"{flag:<{indent}}{body[0]}", *(" " * indent + line for line in body[1:])]


def _defaults_of_new_models(names: Sequence[str]) -> dict[str, str]:
    """Returns the defaults of a new model's configuration, which apply if a checkpoint does not set the field."""
    from ..model import MllmReIDConfig, MllmReIDVisionConfig

    # Only an encoder without a language model has a pooling to choose.
    known = {**MllmReIDVisionConfig.__dataclass_fields__, **MllmReIDConfig.__dataclass_fields__}
    defaults = {name: known[name].default for name in names}
    return {name: f"checkpoint's, or {_as_flag_value(value)}" for name, value in defaults.items() if value is not None}


def _kind(action: Action) -> Any:
    """Returns the type of a field's values; `dict` for `dict[str, str]`."""
    name = getattr(action.type, "__name__", "")
    return bool if name == "string_to_bool" else getattr(action.type, "__origin__", action.type)


def _plain(value: Any) -> Any:
    """Returns the value of an enum member, and any other value unchanged."""
    return value.value if isinstance(value, Enum) else value


def _as_flag_value(value: Any) -> str:
    """Returns a default in the form that a flag takes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _first_sentence(text: str) -> str:
    """Returns the first sentence of a text without its full stop."""
    return re.split(r"\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0]
