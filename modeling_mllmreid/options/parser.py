"""Options of a command: dataclass fields from a flat YAML file and from the command line, which wins."""

import difflib
import json
import logging
import math
import os
import re
from argparse import Action, ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from functools import partial
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser

from ..utils.errors import UserError, is_our_fault
from ..utils.ranges import Range
from ..utils.shipped import recipe_path
from .help_text import help_text, program_name
from .yaml_files import read_yaml

logger = logging.getLogger(__name__)


# Old name -> new name: the old one is taken for one release, with a warning.
RENAMED = {
    "lesson_people": "pretraining_people",
    "lesson_steps": "pretraining_steps",
    "lesson_batch_size": "pretraining_batch_size",
    "lesson_learning_rate": "pretraining_learning_rate",
    "rows": "variants",
}
TRAINED_ALONE = (
    "reid_on",
    "loss_lambda",
    "id_weight",
    "triplet_weight",
    "label_smoothing",
    "triplet_margin",
    "triplet_soft_margin",
    "bnneck",
    "distillation_weight",
    "reid_text",
)
# Fields of a command's dataclasses that do nothing there: not in its help, and for one release ignored with a warning.
UNUSED: dict[str, tuple[str, ...]] = {
    "embed": TRAINED_ALONE,
    "evaluate": TRAINED_ALONE,
    "push": ("revision",),
    # It reads no texts but its own, trains on one set, and starts in an empty folder.
    "demo": ("texts", "balance_sets", "resume_from_checkpoint"),
    # Every run has the plan's texts and seeds, and neither evaluates nor saves on its way.
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

# Of fields whose type has no range; beyond it C's integers overflow in one library or another.
INTEGERS = Range(at_least=-(2**32), at_most=2**32)
HELP_ALL = {"--help_all", "--help-all"}
HELP = {"-h", "--help", *HELP_ALL}
NO_NUMBERS = ("nan", "-nan", "inf", "-inf", "+inf")
WHOLE_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)", re.ASCII)
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)


def parse(dataclasses: Sequence[Any], argv: Sequence[str], command: str) -> tuple[Any, ...]:
    """One instance of each dataclass from `[config.yaml] [--field value ...]`; no field name may be in two of them.

    A value means the same in either source. On the command line a list that is given several times grows, and of other
    fields the last value counts, with a warning. `--help` prints the fields that matter first and `--help_all` every
    field; both exit.
    Raises UserError naming the file and key, or the flag: for an unknown one with the nearest known, for a value of a
    wrong type or out of the field's range (`ranges.Range`), for a missing one, and for values that a dataclass itself
    refuses.
    """
    return build_options(dataclasses, read_options(dataclasses, argv, command), command)


def read_options(dataclasses: Sequence[Any], argv: Sequence[str], command: str) -> dict[str, Any]:
    """What the file and the flags give, by field; defaults are not in it. Exits and raises as `parse` does."""
    parser = _Parser(dataclasses, command)
    given: dict[str, Any] = {}
    flags = list(argv)
    if flags and not flags[0].startswith("-"):
        path = recipe_path(flags.pop(0), command)
        given = parser.from_mapping(read_yaml(path), str(path))
    if HELP & set(flags):
        actions = {action.dest: action for action in parser.known_actions()}
        everything = bool(HELP_ALL & set(flags))
        print(help_text(dataclasses, command, actions, parser.ranges, recipe=given, everything=everything))
        raise SystemExit(0)
    return {**given, **parser.from_flags(flags, command)}


def read_mapping(dataclasses: Sequence[Any], content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields that a mapping gives, as from a YAML file; `where` stands in the errors."""
    return _Parser(dataclasses, where).from_mapping(content, where)


def build_options(dataclasses: Sequence[Any], given: Mapping[str, Any], command: str) -> tuple[Any, ...]:
    """One instance of each dataclass from those of the given values that are its fields. Raises as `parse` does."""
    return tuple(_build(dataclass, given, command) for dataclass in dataclasses)


class _Parser(HfArgumentParser):
    """The fields of dataclasses as flags: transformers makes the flags, stricter rules read their values."""

    def __init__(self, dataclasses: Sequence[Any], command: str):
        super().__init__(dataclasses, prog=f"{program_name()} {command}")
        self.unused = UNUSED.get(command, ())
        self.hints = {name: hint for kind in dataclasses for name, hint in _type_hints(kind).items()}
        self.ranges = {
            name: _range(hint) for kind in dataclasses for name, hint in _type_hints(kind, include_extras=True).items()
        }

    def known_actions(self) -> list[Action]:
        """The flags of the fields that the command uses: one for each, not a second spelling such as `--no_field`."""
        own = [self._option_string_actions[f"--{name}"] for name in self.hints]
        return [action for action in own if action.dest not in self.unused]

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message}")

    def current_name(self, name: str, where: str) -> str:
        """A field's name, in place of the old one that it may have been given by; with a warning then."""
        new = RENAMED.get(name)
        if new is None or new not in self.hints:
            return name
        logger.warning("%s: %s is now called %s: the next release does not know the old name", where, name, new)
        return new

    def current_flag(self, flag: str, where: str) -> str:
        """As `current_name`, for a flag in either spelling."""
        prefix, name = ("--no_", flag[5:]) if flag[:5] in ("--no_", "--no-") else ("--", flag[2:])
        old = name.replace("-", "_")
        return f"{prefix}{self.current_name(old, where)}" if old in RENAMED else flag

    def is_unused(self, name: str, where: str) -> bool:
        """Whether the command has no use for a field; with a warning then."""
        if name in self.unused:
            logger.warning("%s: %s has no effect here: leave it out, the next release refuses it", where, name)
        return name in self.unused

    def from_flags(self, flags: Sequence[str], where: str) -> dict[str, Any]:
        """The fields that the flags give, with their values converted."""
        given: dict[str, Any] = {}
        for flag, texts in _split(flags, where):
            action = self._option_string_actions.get(self.current_flag(flag, where))
            if action is None or action.dest == "help":
                # Each field has a second spelling with dashes; one is enough to choose from.
                raise UserError(_unknown(where, flag, [known.option_strings[0] for known in self.known_actions()]))
            name = action.dest
            if self.is_unused(name, where):
                continue
            value = self._of_texts(action, texts, f"{where}: {name}")
            if isinstance(value, list):
                value = given.get(name, []) + value
            elif name in given and given[name] != value:
                logger.warning("%s: %s is given as %r and as %r: the last counts", where, name, given[name], value)
            given[name] = value
        return given

    def from_mapping(self, content: Mapping[str, Any], where: str) -> dict[str, Any]:
        """The fields that a mapping gives, with their values converted as those of flags are."""
        given: dict[str, Any] = {}
        for key, value in content.items():
            key = self.current_name(str(key), where)
            if key not in self.hints:
                raise UserError(_unknown(where, key, [known.dest for known in self.known_actions()]))
            if self.is_unused(key, where):
                continue
            if key in given:
                raise UserError(f"{where}: {key}: is there under its old name too: keep one of them")
            at = f"{where}: {key}"
            kinds = {self.hints[key], *get_args(self.hints[key])}
            origins = kinds | {get_origin(kind) for kind in kinds}
            action = self._option_string_actions[f"--{key}"]
            if value is None:
                if NoneType not in kinds:
                    raise UserError(f"{at}: has no value: give one or remove the line")
                given[key] = None
            elif isinstance(value, list):
                if list not in origins:
                    raise UserError(f"{at}: takes one value, not a list: give one")
                given[key] = [self._of_texts(action, [_text(item, kinds, at)], at)[0] for item in value]
            elif isinstance(value, dict) and dict in origins:
                given[key] = self._of_texts(action, [_json(value, at)], at)
            else:
                given[key] = self._of_texts(action, [_text(value, kinds, at)], at)
        return given

    def _of_texts(self, action: Action, texts: Sequence[str], at: str) -> Any:
        """What a flag's values mean for its field."""
        if action.nargs == 0 or (action.nargs == "?" and not texts):
            if texts:
                raise UserError(f"{at}: {action.option_strings[0]} takes no value: leave {texts[0]!r} out")
            return action.const
        if not texts:
            raise UserError(
                f"{at}: expected one argument: write {action.option_strings[0]}=VALUE where it begins with --"
            )
        if action.nargs != "+" and len(texts) > 1:
            raise UserError(f"{at.rpartition(': ')[0]}: {texts[1]!r} stands alone: give one value after each --field")
        values = [self._of_text(action, text, at) for text in texts]
        return values if action.nargs == "+" else values[0]

    def _of_text(self, action: Action, text: str, at: str) -> Any:
        """What one value means."""
        if not text.strip() or not _is_text(text):
            raise UserError(f"{at}: {text!r} is empty or no text: give a value or leave it out")
        if action.choices is not None:
            value = action.type(text) if callable(action.type) else text
            if value not in action.choices:
                choices = [str(choice) for choice in action.choices]
                nearest = difflib.get_close_matches(text[:80], choices, 1, cutoff=0.0)[0]
                raise UserError(
                    f"{at}: invalid choice: {text!r}: give one of {', '.join(choices)}: did you mean {nearest!r}?"
                )
            return value
        convert: Callable[[str], Any]
        if action.type is int:
            convert = partial(_whole_number, within=self.ranges[action.dest] or INTEGERS)
        elif action.type is float:
            convert = partial(_finite_number, within=self.ranges[action.dest])
        elif dict in (action.type, get_origin(action.type)):
            convert = partial(_json_object, kind=action.type)
        else:
            convert = action.type if callable(action.type) else str
        try:
            return convert(text)
        except (ValueError, TypeError, ArgumentTypeError) as error:
            raise UserError(f"{at}: {error}: fix it; --help says what each field takes") from None


def _split(flags: Sequence[str], where: str) -> list[tuple[str, list[str]]]:
    """Each flag with the values behind it: those up to the next flag, or the one behind its "="."""
    found: list[tuple[str, list[str]]] = []
    open_ended = False
    for text in flags:
        if text.startswith("--") and text != "--":
            flag, equals, value = text.partition("=")
            found.append((flag, [value] if equals else []))
            open_ended = not equals
        elif open_ended:
            found[-1][1].append(text)
        else:
            raise UserError(f"{where}: {text!r} stands alone: give [config.yaml] first, then --field value")
    return found


def _whole_number(text: str, within: Range) -> int:
    """A whole number in plain digits: no exponent, no underscore, no zero in front, which YAML reads as octal."""
    if not WHOLE_NUMBER.fullmatch(text):
        raise ValueError(f"invalid int value: {text!r}")
    if len(text) > 30 or int(text) not in within:
        raise ValueError(f"{text}: is out of range: give a number {within}")
    return int(text)


def _finite_number(text: str, within: Range | None) -> float:
    """A finite number in plain digits, with or without an exponent."""
    if within is None and text.lower() in NO_NUMBERS:
        # The dataclass may have a better word for it; `_build` refuses what is left.
        return float(text)
    if not NUMBER.fullmatch(text):
        raise ValueError(f"invalid float value: {text!r}")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text}: is out of range: give a finite number")
    if within is not None and value not in within:
        raise ValueError(f"{text}: is out of range: give a number {within}")
    return value


def _json_object(text: str, kind: Any) -> dict[str, Any]:
    """The object that a flag gives as JSON. kind: its type, `dict` or `dict[str, type]`."""
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_without_twins)
    except ValueError as error:
        raise ValueError(f"{text!r} is not JSON ({error})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is not a JSON object")
    if not all(map(_is_text, _strings(value))):
        raise ValueError("holds a NUL or half a character")
    of_values = get_args(kind)[1] if get_args(kind) else object
    for key, item in value.items():
        if not isinstance(item, get_origin(of_values) or of_values):
            raise ValueError(f"{key!r} has the value {item!r}, not {_NAMES[get_origin(of_values) or of_values]}")
    return value


_NAMES: dict[Any, str] = {str: "text", dict: "a mapping", list: "a list"}


def _is_text(text: str) -> bool:
    """Whether a text could be a file's name: no NUL, no half of a character."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _strings(value: Any) -> Iterator[str]:
    """Every text in a value of JSON's types."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _strings(item)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no finite number")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Raises ValueError for a key that it has twice."""
    keys = [key for key, _ in pairs]
    twins = [key for key in keys if keys.count(key) > 1] if len(set(keys)) < len(keys) else []
    if twins:
        raise ValueError(f"the key {twins[0]!r} is there twice")
    return dict(pairs)


def _text(value: Any, kinds: set[Any], at: str) -> str:
    """A single value of a mapping as it would stand on the command line."""
    if isinstance(value, dict | list):
        raise UserError(f"{at}: takes one value, not a {'mapping' if isinstance(value, dict) else 'list'}: give one")
    if value is None:
        raise UserError(f"{at}: holds an empty entry: give a value or remove it")
    if isinstance(value, bool):
        if bool not in kinds:
            raise UserError(f"{at}: YAML reads this word as yes or no: put it in quotes if it is meant as text")
        return str(value).lower()
    return str(value)


def _json(value: dict[str, Any], at: str) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{at}: cannot be written as JSON ({error}): give text, numbers, lists and mappings") from None


def _build(dataclass: type, given: Mapping[str, Any], command: str) -> Any:
    """An instance from those of the given values that are its fields."""
    own = [field for field in fields(dataclass) if field.init]
    for field in own:
        if field.default is MISSING and field.default_factory is MISSING and field.name not in given:
            raise UserError(f"{command}: {field.name} is not given: add it; --help says what it takes")
    values = {field.name: given[field.name] for field in own if field.name in given}
    try:
        built = dataclass(**values)
    except (ValueError, ImportError) as error:
        raise UserError(f"{command}: {error}") from error
    except Exception as error:
        # transformers' own checks of TrainingArguments fail in many ways; what fails in our code is our fault.
        if is_our_fault(error):
            raise
        raise UserError(f"{command}: these values do not go together ({type(error).__name__}: {error})") from error
    for name, value in values.items():
        if any(isinstance(number, float) and not math.isfinite(number) for number in (value, *_items(value))):
            raise UserError(f"{command}: {name}: {value}: is out of range: give a finite number")
    return built


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _type_hints(dataclass: Any, **kwargs: Any) -> dict[str, Any]:
    """Field name -> type, of the fields that can be given."""
    hints = get_type_hints(dataclass, **kwargs)
    return {field.name: hints[field.name] for field in fields(dataclass) if field.init}


def _range(hint: Any) -> Range | None:
    """The range in a type, wherever in it: `Annotated[int, Range(1)] | None` has one too."""
    for inner in get_args(hint):
        found = inner if isinstance(inner, Range) else _range(inner)
        if found is not None:
            return found
    return None


def _unknown(where: str, name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name[:80], known, 1, cutoff=0.0)[0]
    return f"{where}: unknown field {name!r}: did you mean {nearest!r}?"
