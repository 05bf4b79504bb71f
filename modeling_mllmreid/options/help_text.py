"""What `--help` prints: the fields of a command by concern, those that matter first, the others on `--help_all`."""

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

# What `--help` shows of a large class, in this order; of a class that is not here it shows every field.
SHOWN_FIRST = {
    "ModelArguments": ("model", "dtype"),
    "DataArguments": ("dataset", "data_dir", "captions_file"),
    "MethodArguments": ("height", "width", "test_feature", "reid_on", "loss_lambda"),
    "BatchArguments": ("texts", "target", "val_identities"),
    "LeakArguments": (),
    "LicenceArguments": (),
    "AdapterArguments": ("language_model", "tower", "quantize"),
    "TinyArguments": ("patch_size", "hidden_size", "pretraining_steps"),
    "ReIDTrainingArguments": (
        "output_dir",
        "identities_per_batch",
        "images_per_identity",
        "num_train_epochs",
        "learning_rate",
        "learning_rates",
        "bf16",
        "activation_checkpointing",
        "resume_from_checkpoint",
        "seed",
    ),
}
# Fields with an empty default that a command refuses.
REQUIRED = {"train": ("output_dir",)}
STOCK_CLASS, STOCK_HEADING = "ReIDTrainingArguments", "Training, as in transformers' TrainingArguments"
VALUES = {int: "N", float: "X", bool: "true|false", dict: "JSON"}
MOST_COLUMNS, LEAST_COLUMNS, VALUE_WIDTH = 120, 60, 20
# A list of names in brackets, which the first screen leaves out.
LONG_BRACKETS = re.compile(r" \([^()]{60,}\)")


def program_name() -> str:
    """The program as it was called: the command `mllmreid`, the script `run_reid.py`, or the module by `python -m`."""
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
    """The usage, and a group of fields for each dataclass.

    Args:
        dataclasses: The classes of the command, in the order of the groups.
        command: Name of the command.
        actions, ranges: The flag and the range of each field that the command uses, by name.
        recipe: The values of a recipe, which are the defaults then.
        everything: Show all fields with their whole help, not only those of `SHOWN_FIRST` with the first sentence.
    """
    lines = [f"usage: {program_name()} {command} [recipe or config.yaml] [--field value ...]"]
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
    """(heading, its fields, those of them that are shown) of each concern."""
    for kind in dataclasses:
        taken = [field for field in fields(kind) if field.name in actions and actions[field.name].help != SUPPRESS]
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", kind.__name__.removesuffix("Arguments").removeprefix("ReID"))
        heading = f"{name.capitalize()}: {_first_sentence(str(kind.__doc__))}".replace("`", "")
        if not everything:
            by_name = {field.name: field for field in taken}
            first: Collection[str] = SHOWN_FIRST.get(kind.__name__, by_name)
            yield heading, taken, [by_name[name] for name in first if name in by_name]
        elif kind.__name__ == STOCK_CLASS:
            own = [field for field in taken if field.name in kind.__annotations__]
            yield heading, own, own
            stock = [field for field in taken if field.name not in kind.__annotations__]
            yield STOCK_HEADING, stock, stock
        else:
            yield heading, taken, taken


def _lines(
    name: str, action: Action, within: Range | None, default: Any, *, required: bool, everything: bool
) -> list[str]:
    """A field with its value, help, choices, default and range, wrapped to the terminal."""
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
        notes.append(f"default: {_as_written(default)}")
    flag = f"  --{name} {value}{' ...' if action.nargs == '+' else ''}"
    described = f"{'Required. ' if required else ''}{text}" + (f" [{'; '.join(notes)}]" if notes else "")
    columns = max(LEAST_COLUMNS, min(shutil.get_terminal_size((MOST_COLUMNS, 40)).columns, MOST_COLUMNS))
    indent = 38 if columns >= 100 else 10
    body = textwrap.wrap(described, columns - indent, break_on_hyphens=False) or [""]
    if len(flag) + 2 > indent:
        return [flag, *(" " * indent + line for line in body)]
    return [f"{flag:<{indent}}{body[0]}", *(" " * indent + line for line in body[1:])]


def _defaults_of_new_models(names: Sequence[str]) -> dict[str, str]:
    """The defaults of the model's configuration, which fields of the method have where the checkpoint has none."""
    from ..model import MllmReIDConfig

    defaults = {name: MllmReIDConfig.__dataclass_fields__[name].default for name in names}
    return {name: f"checkpoint's, or {_as_written(value)}" for name, value in defaults.items() if value is not None}


def _kind(action: Action) -> Any:
    """The type of a field's values, `dict[str, str]` being a dict."""
    name = getattr(action.type, "__name__", "")
    return bool if name == "string_to_bool" else getattr(action.type, "__origin__", action.type)


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def _as_written(value: Any) -> str:
    """A default as it would be given."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(str, value))
    return json.dumps(value) if isinstance(value, dict) else str(value)


def _first_sentence(text: str) -> str:
    """The text up to the first full stop that a sentence follows, without it."""
    return re.split(r"\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0]
