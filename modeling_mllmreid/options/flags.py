"""The flags of a dataclass's fields, which are those of `HfArgumentParser`; transformers takes seconds to import."""

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from enum import Enum
from functools import partial
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

TRUE, FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")


def add_flags(parser: ArgumentParser, dataclass: type) -> None:
    """Adds the flags of the fields that a user can set; a field that is on by default gets `--no_field` too."""
    hints = get_type_hints(dataclass)
    for field in fields(dataclass):
        if not field.init:
            continue
        kind = converted_type(hints[field.name])
        spellings = _spellings("--", field.name)
        parser.add_argument(*spellings, **{**field.metadata, **_value(field, kind), **_default(field, kind)})
        if _is_switch(kind) and field.default is True:
            options = {**field.metadata, "default": False, "dest": field.name}
            parser.add_argument(*_spellings("--no_", field.name), action="store_false", **options)


def string_to_bool(text: str) -> bool:
    """Returns the truth value of a word such as yes, true or 1, in any case."""
    if text.lower() in (*TRUE, *FALSE):
        return text.lower() in TRUE
    raise ArgumentTypeError(f"invalid bool value: {text!r}: give true or false")


def converted_type(hint: Any) -> Any:
    """Returns the type that a field's words are converted to: of a union, one of its types.

    Raises ValueError for a union of several types without text.
    """
    if get_origin(hint) not in (Union, UnionType):
        return hint
    kinds = get_args(hint)
    if str not in kinds and not (len(kinds) == 2 and NoneType in kinds):
        raise ValueError(f"{hint}: a flag has one type: give X or X | None")
    if NoneType in kinds and bool in kinds:
        return hint
    return kinds[0] if kinds[1] is (NoneType if NoneType in kinds else str) else kinds[1]


def _is_switch(kind: Any) -> bool:
    """Returns whether a type is bool or `bool | None`."""
    return kind is bool or set(get_args(kind)) == {bool, NoneType}


def _spellings(prefix: str, name: str) -> list[str]:
    """Returns a flag, and its second spelling with dashes if that is another one."""
    return list(dict.fromkeys([f"{prefix}{name}", f"{prefix}{name}".replace("_", "-")]))


def _value(field: "Field[Any]", kind: Any) -> dict[str, Any]:
    """Returns how a flag takes its words: type, choices, number."""
    if get_origin(kind) is Literal:
        return _choices(get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return _choices(tuple(member.value for member in kind))
    if _is_switch(kind):
        # Without a word, `--field` sets it.
        alone = {"nargs": "?", "const": True} if kind is bool or field.default not in (None, MISSING) else {}
        return {"type": string_to_bool, **alone}
    if get_origin(kind) is list:
        return {"type": get_args(kind)[0], "nargs": "+"}
    return {"type": kind}


def _choices(choices: tuple[Any, ...]) -> dict[str, Any]:
    """Returns the options of a flag that takes one of these values."""
    by_text = {str(choice): choice for choice in choices}
    return {"choices": choices, "type": partial(_choice, by_text)}


def _choice(by_text: dict[str, Any], text: str) -> Any:
    """Returns the choice that a word names, or the word itself, which no choice is equal to."""
    return by_text.get(text, text)


def _default(field: "Field[Any]", kind: Any) -> dict[str, Any]:
    """Returns the default of a flag, or that it has none."""
    if field.default_factory is not MISSING:
        factory: Callable[[], Any] = field.default_factory
        return {"default": factory()}
    if field.default is not MISSING:
        return {"default": field.default}
    return {"default": False} if kind is bool else {"required": True}
