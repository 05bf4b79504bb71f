"""Options of a command: dataclass fields from a flat YAML file and from the command line, which wins."""

import difflib
import json
from argparse import SUPPRESS, ArgumentError, ArgumentTypeError
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

import yaml
from transformers import HfArgumentParser

from ..errors import UserError

USAGE = "%(prog)s [config.yaml] [--field value ...]"


def parse(dataclasses: Sequence[Any], argv: Sequence[str], command: str) -> tuple[Any, ...]:
    """One instance of each dataclass from `[config.yaml] [--field value ...]`; no field name may be in two of them.

    Both sources go through the same parser, so that a value means the same in either. `--help` prints every field and
    exits. Raises UserError naming the file and key, or the flag: for an unknown one with the nearest known, for a value
    of a wrong type, for a missing one, and for values that a dataclass itself refuses.
    """
    return build_options(dataclasses, read_options(dataclasses, argv, command), command)


def read_options(dataclasses: Sequence[Any], argv: Sequence[str], command: str) -> dict[str, Any]:
    """What the file and the flags give, by field; defaults are not in it. Exits and raises as `parse` does."""
    if {"-h", "--help"} & set(argv):
        _Parser(dataclasses, prog=f"run_reid.py {command}", usage=USAGE).print_help()
        raise SystemExit(0)
    parser = _parser(dataclasses, command)
    given: dict[str, Any] = {}
    flags = list(argv)
    if flags and not flags[0].startswith("-"):
        given = _read_yaml(Path(flags.pop(0)), parser, _type_hints(dataclasses))
    return {**given, **parser.given(flags, command)}


def read_mapping(dataclasses: Sequence[Any], content: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields that a mapping gives, as from a YAML file; `where` stands in the errors."""
    return _read_mapping(content, _parser(dataclasses, where), _type_hints(dataclasses), where)


def build_options(dataclasses: Sequence[Any], given: Mapping[str, Any], command: str) -> tuple[Any, ...]:
    """One instance of each dataclass from those of the given values that are its fields. Raises as `parse` does."""
    return tuple(_build(dataclass, given, command) for dataclass in dataclasses)


def _parser(dataclasses: Sequence[Any], command: str) -> "_Parser":
    parser = _Parser(dataclasses, prog=f"run_reid.py {command}", usage=USAGE)
    for action in parser._actions:
        # Only what was given is wanted: the dataclasses have the defaults.
        action.default, action.required = SUPPRESS, False
        if action.type is dict:
            # argparse would call `dict` on the text.
            action.type = _json_object
    return parser


class _Parser(HfArgumentParser):
    """Raises where argparse would print its usage and exit."""

    def __init__(self, dataclasses: Sequence[Any], **kwargs: Any):
        # Abbreviations off: a misspelt flag must not become another one.
        super().__init__(dataclasses, allow_abbrev=False, exit_on_error=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(None, message)

    def given(self, flags: Sequence[str], where: str) -> dict[str, Any]:
        """The fields that the flags give, with their values converted."""
        try:
            values, unknown = self.parse_known_args(list(flags))
        except ArgumentError as error:
            field = (error.argument_name or "").split("/")[0].lstrip("-")
            raise UserError(f"{where}: {field}: {error.message}: mend it; --help says what each field takes") from None
        if unknown and not unknown[0].startswith("-"):
            raise UserError(f"{where}: {unknown[0]!r} stands alone: give [config.yaml] first, then --field value")
        if unknown:
            # Each field has a second spelling with dashes; one is enough to choose from.
            flags = [action.option_strings[0] for action in self._actions]
            raise UserError(_unknown(where, unknown[0].split("=")[0], flags))
        return vars(values)


def _read_yaml(path: Path, parser: _Parser, hints: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a flat YAML file gives, converted by the command line's own rules."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): give the configuration file's path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())}): mend it") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a list of `field: value` lines: write one field a line")
    return _read_mapping(content, parser, hints, str(path))


def _read_mapping(content: Mapping[str, Any], parser: _Parser, hints: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The fields of a mapping. path: what it is of, for the errors."""
    given: dict[str, Any] = {}
    for key, value in content.items():
        if key not in hints:
            raise UserError(_unknown(path, str(key), hints))
        kinds = {hints[key], *get_args(hints[key])}
        if value is None:
            if NoneType not in kinds:
                raise UserError(f"{path}: {key}: has no value: give one or remove the line")
            given[key] = None
            continue
        if isinstance(value, bool) and bool not in kinds:
            raise UserError(
                f"{path}: {key}: YAML reads this word as yes or no: put it in quotes if it is meant as text"
            )
        if isinstance(value, list) and list not in kinds | {get_origin(kind) for kind in kinds}:
            raise UserError(f"{path}: {key}: takes one value, not a list: give one")
        given.update(parser.given(_as_flags(key, value), path))
    return given


def _json_object(text: str) -> dict[str, Any]:
    """The object that a flag gives as JSON."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{text!r} is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def _as_flags(key: str, value: Any) -> list[str]:
    """A YAML value as it would stand on the command line."""
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{key}={json.dumps(value)}"]
    return [f"--{key}={str(value).lower() if isinstance(value, bool) else value}"]


def _build(dataclass: type, given: Mapping[str, Any], command: str) -> Any:
    """An instance from those of the given values that are its fields."""
    own = [field for field in fields(dataclass) if field.init]
    for field in own:
        if field.default is MISSING and field.default_factory is MISSING and field.name not in given:
            raise UserError(f"{command}: {field.name} is not given: add it; --help says what it takes")
    try:
        return dataclass(**{field.name: given[field.name] for field in own if field.name in given})
    except (ValueError, ImportError) as error:
        raise UserError(f"{command}: {' '.join(str(error).split())}") from error


def _type_hints(dataclasses: Sequence[Any]) -> dict[str, Any]:
    """Field name -> type, over all the dataclasses."""
    hints = [(field.name, get_type_hints(dc)[field.name]) for dc in dataclasses for field in fields(dc) if field.init]
    return dict(hints)


def _unknown(where: str, name: str, known: Iterable[str]) -> str:
    return (
        f"{where}: unknown field {name!r}: did you mean {difflib.get_close_matches(name, known, 1, cutoff=0.0)[0]!r}?"
    )
