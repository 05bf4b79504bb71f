"""Reads the options of a command from a flat YAML file and from the command line, which takes precedence."""

import difflib
import json
import logging
import math
from argparse import Action, ArgumentParser, ArgumentTypeError
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import partial
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from ..utils.errors import UserError, is_our_fault
from ..utils.ranges import Range
from ..utils.shipped import recipe_path
from .flags import add_flags
from .help_text import help_text, program_name
from .overrides import is_overridden, refuse_overridden
from .values import INTEGERS, finite_number, is_text, json_object, whole_number
from .yaml_files import read_yaml

logger = logging.getLogger(__name__)


# Old name -> new name. The old name is accepted for one release, with a warning.
RENAMED = {
    "lesson_people": "pretraining_people",
    "lesson_steps": "pretraining_steps",
    "lesson_batch_size": "pretraining_batch_size",
    "lesson_learning_rate": "pretraining_learning_rate",
    "rows": "variants",
}
# `reid_on` and `bnneck` are not here: they choose the heads of the model.
TRAINING_ONLY = (
    "loss_lambda",
    "id_weight",
    "triplet_weight",
    "label_smoothing",
    "triplet_margin",
    "triplet_soft_margin",
    "triplet_scale",
    "distillation_weight",
    "reid_text",
    "text_loss",
    "text_temperature",
    "pair_weight",
)
# Fields that have no effect in a command: its help omits them, and for one release they are ignored with a warning.
UNUSED: dict[str, tuple[str, ...]] = {
    "embed": TRAINING_ONLY,
    "evaluate": TRAINING_ONLY,
    "push": ("revision",),
    "calibrate": ("revision",),
    # The demo reads only its own texts, trains on one data set, and starts in an empty folder.
    "demo": ("texts", "balance_sets", "resume_from_checkpoint"),
    # The plan sets the texts and seeds of every run; a run neither evaluates nor saves before its end.
    "ablate": (
        "texts",
        "seed",
        "disable_tqdm",
        "eval_strategy",
        "eval_steps",
        "eval_delay",
        "eval_on_start",
        "save_strategy",
        "save_steps",
        "save_total_limit",
        "load_best_model_at_end",
        "metric_for_best_model",
        "resume_from_checkpoint",
    ),
}

HELP_ALL = {"--help_all", "--help-all"}
HELP = {"-h", "--help", *HELP_ALL}


def parse(dataclasses: Sequence[Any], argv: Sequence[str], command: str) -> tuple[Any, ...]:
    """Builds the options of a command from `[recipe or config.yaml] [--field value ...]`.

    A value means the same in YAML and on the command line. A list flag that is given several times collects all values,
    and `[]` after it is an empty list; of any other flag the last value counts, with a warning. `--help` prints the
    most important fields and `--help_all` every field; both exit.

    Args:
        dataclasses (`Sequence`):
            Dataclasses with the fields of the command. No two of them share a field name.
        argv (`Sequence[str]`):
            Arguments after the name of the command.
        command (`str`):
            Name of the command, for messages and for the fields that have no effect in it (`UNUSED`).

    Returns:
        `tuple`: One instance of each dataclass, in their order.

    Raises:
        UserError: names the file and key, or the flag, if a field is unknown or missing, if a value has the wrong type
            or is out of range (`ranges.Range`), or if a dataclass refuses its values.
    """
    return build_options(dataclasses, read_options(dataclasses, argv, command), command)


def read_options(dataclasses: Sequence[Any], argv: Sequence[str], command: str) -> dict[str, Any]:
    """Returns the values that the file and the flags set, by field, without defaults. Exits and raises like `parse`."""
    parser = _Parser(dataclasses, command)
    values: dict[str, Any] = {}
    flags = list(argv)
    if flags and not flags[0].startswith("-"):
        path = recipe_path(flags.pop(0), command)
        values = parser.from_mapping(read_yaml(path), str(path))
    if HELP & set(flags):
        known = parser.known_actions()
        actions = {action.dest: action for action in known if not is_overridden(action.dest, values)}
        everything = bool(HELP_ALL & set(flags))
        print(help_text(dataclasses, command, actions, parser.ranges, recipe=values, everything=everything))
        raise SystemExit(0)
    given = parser.from_flags(flags, command)
    values = {**values, **given}
    refuse_overridden(given, {**{action.dest: action.default for action in parser.known_actions()}, **values}, command)
    return values


def read_mapping(dataclasses: Sequence[Any], content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns the values that a mapping sets, converted like those of a YAML file; `where` names it in errors."""
    return _Parser(dataclasses, where).from_mapping(content, where)


def build_options(dataclasses: Sequence[Any], values: Mapping[str, Any], command: str) -> tuple[Any, ...]:
    """Builds one instance of each dataclass from the values of its own fields. Raises like `parse`."""
    missing = [
        field.name
        for dataclass in dataclasses
        for field in fields(dataclass)
        if field.init and field.default is MISSING and field.default_factory is MISSING and field.name not in values
    ]
    if missing:
        names = " and ".join(filter(None, [", ".join(missing[:-1]), missing[-1]]))
        words = ("is", "it", "it takes") if len(missing) == 1 else ("are", "them", "they take")
        raise UserError("{}: {} {} not given: add {}; --help says what {}".format(command, names, *words))
    return tuple(_build(dataclass, values, command) for dataclass in dataclasses)


class _Parser(ArgumentParser):
    """The fields of dataclasses as flags, with stricter rules for their values than argparse has."""

    def __init__(self, dataclasses: Sequence[Any], command: str):
        super().__init__(prog=f"{program_name()} {command}")
        for dataclass in dataclasses:
            add_flags(self, dataclass)
        self.unused = UNUSED.get(command, ())
        self.hints = {name: hint for kind in dataclasses for name, hint in _type_hints(kind).items()}
        self.ranges = {
            name: _range(hint) for kind in dataclasses for name, hint in _type_hints(kind, include_extras=True).items()
        }

    def known_actions(self) -> list[Action]:
        """Returns one flag for each field that the command uses, without second spellings such as `--no_field`."""
        own = [self._option_string_actions[f"--{name}"] for name in self.hints]
        return [action for action in own if action.dest not in self.unused]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")

    def current_name(self, name: str, where: str) -> str:
        """Returns the current name of a field; warns if the name is an old one."""
        new = RENAMED.get(name)
        if new is None or new not in self.hints:
            return name
        logger.warning("%s: %s is now called %s: the next release does not know the old name", where, name, new)
        return new

    def current_flag(self, flag: str, where: str) -> str:
        """Returns the current spelling of a flag; warns if its name is an old one."""
        prefix, name = ("--no_", flag[5:]) if flag[:5] in ("--no_", "--no-") else ("--", flag[2:])
        old = name.replace("-", "_")
        return f"{prefix}{self.current_name(old, where)}" if old in RENAMED else flag

    def is_unused(self, name: str, where: str) -> bool:
        """Returns whether a field has no effect in the command; warns if so."""
        if name in self.unused:
            logger.warning("%s: %s has no effect here: leave it out, the next release refuses it", where, name)
        return name in self.unused

    def from_flags(self, flags: Sequence[str], where: str) -> dict[str, Any]:
        """Returns the converted values that the flags set, by field."""
        values: dict[str, Any] = {}
        for flag, texts in _split(flags, where):
            action = self._option_string_actions.get(self.current_flag(flag, where))
            if action is None or action.dest == "help":
                # Suggest one spelling of a field, without the second one with dashes.
                raise UserError(_unknown(where, flag, [known.option_strings[0] for known in self.known_actions()]))
            name = action.dest
            if self.is_unused(name, where):
                continue
            # As in YAML; without a word after it, a flag of a list is a mistake, such as a variable without a value.
            empty = action.nargs == "+" and list(texts) == ["[]"]
            value = [] if empty else self._convert(action, texts, f"{where}: {name}")
            if isinstance(value, list):
                value = values.get(name, []) + value
            elif name in values and values[name] != value:
                logger.warning("%s: %s is given as %r and as %r: the last counts", where, name, values[name], value)
            values[name] = value
        return values

    def from_mapping(self, content: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Returns the converted values that a mapping sets, by field."""
        values: dict[str, Any] = {}
        for key, value in content.items():
            key = self.current_name(str(key), where)
            if key not in self.hints:
                raise UserError(_unknown(where, key, [known.dest for known in self.known_actions()]))
            if self.is_unused(key, where):
                continue
            if key in values:
                raise UserError(f"{where}: {key}: is there under its old name too: keep one of them")
            place = f"{where}: {key}"
            kinds = {self.hints[key], *get_args(self.hints[key])}
            origins = kinds | {get_origin(kind) for kind in kinds}
            action = self._option_string_actions[f"--{key}"]
            if value is None:
                if NoneType not in kinds:
                    raise UserError(f"{place}: has no value: give one or remove the line")
                values[key] = None
            elif isinstance(value, list):
                if list not in origins:
                    raise UserError(f"{place}: takes one value, not a list: give one")
                values[key] = [self._convert(action, [_text(item, kinds, place)], place)[0] for item in value]
            elif isinstance(value, dict) and dict in origins:
                values[key] = self._convert(action, [_json(value, place)], place)
            else:
                values[key] = self._convert(action, [_text(value, kinds, place)], place)
        return values

    def _convert(self, action: Action, texts: Sequence[str], place: str) -> Any:
        """Returns the value of a field from the words that follow its flag."""
        if action.nargs == 0 or (action.nargs == "?" and not texts):
            if texts:
                raise UserError(f"{place}: {action.option_strings[0]} takes no value: leave {texts[0]!r} out")
            return action.const
        if not texts:
            raise UserError(
                f"{place}: expected one argument: write {action.option_strings[0]}=VALUE where it begins with --"
            )
        if action.nargs != "+" and len(texts) > 1:
            raise UserError(
                f"{place.rpartition(': ')[0]}: {texts[1]!r} stands alone: give one value after each --field"
            )
        values = [self._convert_one(action, text, place) for text in texts]
        return values if action.nargs == "+" else values[0]

    def _convert_one(self, action: Action, text: str, place: str) -> Any:
        """Returns one word as a value of the field's type."""
        if not text.strip() or not is_text(text):
            raise UserError(f"{place}: {text!r} is empty or no text: give a value or leave it out")
        if action.choices is not None:
            value = action.type(text) if callable(action.type) else text
            if value not in action.choices:
                choices = [str(choice) for choice in action.choices]
                nearest = difflib.get_close_matches(text[:80], choices, 1, cutoff=0.0)[0]
                raise UserError(
                    f"{place}: invalid choice: {text!r}: give one of {', '.join(choices)}: did you mean {nearest!r}?"
                )
            return value
        convert: Callable[[str], Any]
        if action.type is int:
            convert = partial(whole_number, within=self.ranges[action.dest] or INTEGERS)
        elif action.type is float:
            convert = partial(finite_number, within=self.ranges[action.dest])
        elif dict in (action.type, get_origin(action.type)):
            convert = partial(json_object, kind=action.type)
        else:
            convert = action.type if callable(action.type) else str
        try:
            return convert(text)
        except (ValueError, TypeError, ArgumentTypeError) as error:
            raise UserError(f"{place}: {error}: fix it; --help says what each field takes") from None


def _split(flags: Sequence[str], where: str) -> list[tuple[str, list[str]]]:
    """Returns each flag with its words: those up to the next flag, or the one after its "="."""
    words: list[tuple[str, list[str]]] = []
    open_ended = False
    for text in flags:
        if text.startswith("--") and text != "--":
            flag, equals, value = text.partition("=")
            words.append((flag, [value] if equals else []))
            open_ended = not equals
        elif open_ended:
            words[-1][1].append(text)
        else:
            raise UserError(f"{where}: {text!r} stands alone: give [config.yaml] first, then --field value")
    return words


def _text(value: Any, kinds: set[Any], place: str) -> str:
    """Returns a single YAML value as the word that sets it on the command line."""
    if isinstance(value, dict | list):
        raise UserError(f"{place}: takes one value, not a {'mapping' if isinstance(value, dict) else 'list'}: give one")
    if value is None:
        raise UserError(f"{place}: holds an empty entry: give a value or remove it")
    if isinstance(value, bool):
        if bool not in kinds:
            raise UserError(f"{place}: YAML reads this word as yes or no: put it in quotes if it is meant as text")
        return str(value).lower()
    return str(value)


def _json(value: dict[str, Any], place: str) -> str:
    """Returns a mapping of a YAML file as JSON."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{place}: cannot be written as JSON ({error}): give text, numbers, lists and mappings"
        ) from None


def _build(dataclass: type, values: Mapping[str, Any], command: str) -> Any:
    """Builds an instance of a dataclass from the values of its own fields."""
    own_values = {field.name: values[field.name] for field in fields(dataclass) if field.init and field.name in values}
    try:
        built = dataclass(**own_values)
    except (ValueError, ImportError) as error:
        raise UserError(f"{command}: {error}") from error
    except Exception as error:
        # The checks of TrainingArguments raise many types; an error raised by this package is a fault of ours.
        if is_our_fault(error):
            raise
        raise UserError(f"{command}: these values do not go together ({type(error).__name__}: {error})") from error
    for name, value in own_values.items():
        if any(isinstance(number, float) and not math.isfinite(number) for number in (value, *_items(value))):
            raise UserError(f"{command}: {name}: {value}: is out of range: give a finite number")
    return built


def _items(value: Any) -> list[Any]:
    """Returns the items of a list, and none for another value."""
    return value if isinstance(value, list) else []


def _type_hints(dataclass: Any, **kwargs: Any) -> dict[str, Any]:
    """Returns the types of the fields that a user can set, by name."""
    hints = get_type_hints(dataclass, **kwargs)
    return {field.name: hints[field.name] for field in fields(dataclass) if field.init}


def _range(hint: Any) -> Range | None:
    """Returns the range inside a type, for example of `Annotated[int, Range(1)] | None`."""
    for inner in get_args(hint):
        limits = inner if isinstance(inner, Range) else _range(inner)
        if limits is not None:
            return limits
    return None


def _unknown(where: str, name: str, known: Iterable[str]) -> str:
    """Returns the message for an unknown field, with the most similar known one."""
    nearest = difflib.get_close_matches(name[:80], known, 1, cutoff=0.0)[0]
    return f"{where}: unknown field {name!r}: did you mean {nearest!r}?"
