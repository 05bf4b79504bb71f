"""Converts one word of the command line or of a YAML file: whole numbers, numbers, JSON objects."""

import json
import math
import os
import re
from collections.abc import Iterator
from typing import Any, NoReturn, get_args, get_origin

from ..utils.ranges import Range

# Range of the integer fields whose type has none: beyond it, C integers overflow in some library.
INTEGERS = Range(at_least=-(2**32), at_most=2**32)
NOT_FINITE = ("nan", "-nan", "inf", "-inf", "+inf")
WHOLE_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]*)", re.ASCII)
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", re.ASCII)
_NAMES: dict[Any, str] = {str: "text", dict: "a mapping", list: "a list"}


def whole_number(text: str, within: Range) -> int:
    """Returns a whole number in plain digits; refuses exponents, underscores and leading zeros (octal in YAML)."""
    if not WHOLE_NUMBER.fullmatch(text):
        raise ValueError(f"invalid int value: {text!r}")
    if len(text) > 30 or int(text) not in within:
        raise ValueError(f"{text}: is out of range: give a number {within}")
    return int(text)


def finite_number(text: str, within: Range | None) -> float:
    """Returns a finite number in plain digits, with or without an exponent."""
    if within is None and text.lower() in NOT_FINITE:
        # The dataclass may refuse it with a clearer message; `_build` refuses it otherwise.
        return float(text)
    if not NUMBER.fullmatch(text):
        raise ValueError(f"invalid float value: {text!r}")
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text}: is out of range: give a finite number")
    if within is not None and value not in within:
        raise ValueError(f"{text}: is out of range: give a number {within}")
    return value


def json_object(text: str, kind: Any) -> dict[str, Any]:
    """Returns a JSON object as a dict; `kind` is the type of the field, `dict` or `dict[str, type]`."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except ValueError as error:
        raise ValueError(f"{text!r} is not JSON ({error})") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"{text!r} is not a JSON object")
    if not all(map(is_text, _strings(value))):
        raise ValueError("holds a NUL or half a character")
    value_type = get_args(kind)[1] if get_args(kind) else object
    for key, item in value.items():
        if not isinstance(item, get_origin(value_type) or value_type):
            raise ValueError(f"{key!r} has the value {item!r}, not {_NAMES[get_origin(value_type) or value_type]}")
    return value


def is_text(text: str) -> bool:
    """Returns whether a text can be a file name: it has no NUL and no lone surrogate."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _strings(value: Any) -> Iterator[str]:
    """Yields every text in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            yield from _strings(item)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no finite number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns the pairs of a JSON object as a dict. Raises ValueError for a repeated key."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} is there twice")
    return dict(pairs)
