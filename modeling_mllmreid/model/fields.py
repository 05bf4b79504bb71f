"""Checks of a configuration's fields: each is of its declared type, and its number means something."""

import copy
import math
from typing import Any, Literal, get_args, get_origin

from transformers import AutoConfig, PreTrainedConfig

LARGEST_SIDE = 4096
WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}


def check_types(config: PreTrainedConfig) -> None:
    """Raises ValueError for the first field of the configuration's own class whose value is not of its type.

    A whole number is a float as well; true and false are no numbers.
    """
    for name, kind in type(config).__annotations__.items():
        value = getattr(config, name)
        if name not in config.sub_configs and not _fits(value, kind):
            raise ValueError(f"{name} is {repr(value)[:60]}; give {_said(kind)}")


def check_range(config: PreTrainedConfig, low: float, high: float, *names: str) -> None:
    """Raises ValueError for the first of the named numbers that is not from `low` to `high`."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            said = f"{low} or more" if math.isinf(high) else f"a number from {low} to {high}"
            raise ValueError(f"{name} is {value}; give {said}")


def check_layer(name: str, layer: int, depth: int) -> None:
    """Raises ValueError where `layer` is no index into the `depth + 1` hidden states of a model of `depth` layers."""
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"{name} is {layer}; of {depth} layers give a number from {-depth - 1} to {depth}")


def check_crop_size(config: PreTrainedConfig, vision_config: PreTrainedConfig) -> None:
    """Raises ValueError where height or width is out of 1 to 4096, or no multiple of the tower's patch size."""
    check_range(config, 1, math.inf, "height", "width")
    # Before the memory of such crops is asked for.
    if max(config.height, config.width) > LARGEST_SIDE:
        raise ValueError(f"height x width is {config.height} x {config.width}; give at most {LARGEST_SIDE} each")
    patch = getattr(vision_config, "patch_size", None)
    if not _fits(patch, int) or patch < 1:
        raise ValueError(f"vision_config.patch_size is {patch!r}; give a whole number, 1 or more")
    if config.height % patch or config.width % patch:
        raise ValueError(
            f"height x width is {config.height} x {config.width}; "
            f"both must be multiples of the tower's patch size {patch}"
        )


def nested_config(name: str, given: Any, model_type: str) -> PreTrainedConfig:
    """A nested configuration from its fields, of `model_type` where they do not say another; of a ready one a copy.

    The configuration that nests it sets its choice of attention: a model that has the ready one must keep its own.
    Raises ValueError naming the field that holds it.
    """
    if isinstance(given, PreTrainedConfig):
        return copy.deepcopy(given)
    if not isinstance(given, (dict, type(None))):
        raise ValueError(f"{name} is {repr(given)[:60]}; give the fields of a configuration")
    try:
        return AutoConfig.for_model(**copy.deepcopy({"model_type": model_type, **(given or {})}))
    except Exception as error:  # transformers and its strict dataclasses raise a dozen kinds
        raise ValueError(f"{name}: {' '.join(str(error).split())[:200]}") from error


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if origin is list:
        return isinstance(value, (list, tuple)) and all(_fits(item, get_args(kind)[0]) for item in value)
    if origin is not None:
        return any(_fits(value, option) for option in get_args(kind))
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def _said(kind: Any) -> str:
    origin = get_origin(kind)
    if origin is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if origin is list:
        return f"a list, each {_said(get_args(kind)[0])}"
    return WORDS[kind] if origin is None else " or ".join(map(_said, get_args(kind)))
