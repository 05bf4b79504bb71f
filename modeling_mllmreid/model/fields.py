"""Fields of configurations and processors: checks of types and ranges, and the names of older versions."""

import copy
import math
from typing import Any, Literal, get_args, get_origin

import torch
from transformers import AutoConfig, PreTrainedConfig

from .images import LARGEST_SIDE

WORDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text", type(None): "null"}


def check_types(config: PreTrainedConfig) -> None:
    """Checks every field that the configuration's class declares itself.

    A whole number is accepted for a float; true and false are not accepted for a number.

    Raises:
        ValueError: for the first field of another type than the declared one.
    """
    for name, declared in type(config).__annotations__.items():
        value = getattr(config, name)
        if name not in config.sub_configs and not _fits(value, declared):
            raise ValueError(f"{name} is {repr(value)[:60]}; give {_type_in_words(declared)}")


def check_fields(fields: dict[str, Any], where: str) -> None:
    """Raises ValueError for a field, at any depth, that crashes transformers or makes it fetch foreign code."""
    for key, value in fields.items():
        if key in ("dtype", "torch_dtype"):
            fits = value is None or isinstance(value, str) and isinstance(getattr(torch, value, None), torch.dtype)
        elif key in ("quantization_config", "id2label", "label2id"):
            fits = isinstance(value, (dict, type(None)))
        elif key == "num_labels":
            fits = type(value) is int and 0 <= value < 1_000_000
        elif key.endswith("attn_implementation"):
            # With a slash it names a kernel on the Hub.
            fits = value is None or isinstance(value, str) and "/" not in value
        elif isinstance(value, float):
            fits = math.isfinite(value)
        elif key.endswith("_window"):  # nothing attends within one of 0
            fits = value is None or type(value) is not int or value > 0
        else:
            fits = key != "sub_configs" and not callable(getattr(PreTrainedConfig, key, None))
        if not fits:
            raise ValueError(f"{where}: {key} is {repr(value)[:60]}, which no configuration may hold: remove it")
        if isinstance(value, dict):
            check_fields(value, f"{where}: {key}")


def check_range(config: PreTrainedConfig, low: float, high: float, *names: str) -> None:
    """Raises ValueError for the first of the named numbers that is outside of `low` to `high`."""
    for name in names:
        value = getattr(config, name)
        if not low <= value <= high:
            allowed = f"{low} or more" if math.isinf(high) else f"a number from {low} to {high}"
            raise ValueError(f"{name} is {value}; give {allowed}")


def check_layer(name: str, layer: int, depth: int) -> None:
    """Raises ValueError if `layer` is no index into the `depth + 1` hidden states of a model of `depth` layers."""
    if not -depth - 1 <= layer <= depth:
        raise ValueError(f"{name} is {layer}; of {depth} layers give a number from {-depth - 1} to {depth}")


def check_crop_size(config: PreTrainedConfig) -> None:
    """Raises ValueError if height or width is outside of 1 to 4096, before anything allocates memory for crops."""
    check_range(config, 1, math.inf, "height", "width")
    if max(config.height, config.width) > LARGEST_SIDE:
        raise ValueError(f"height x width is {config.height} x {config.width}; give at most {LARGEST_SIDE} each")


def check_unit(description: Any, vision_config: PreTrainedConfig) -> None:
    """Raises ValueError if a tower or backbone has no whole number of pixels as its `unit`."""
    try:
        unit = description.unit
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError):  # of a foreign config.json
        unit = None
    fits = type(unit) is int and unit > 0
    patch = getattr(vision_config, "patch_size", None)
    sides = list(patch) if isinstance(patch, (list, tuple)) else [patch]
    square = len(set(map(str, sides))) == 1 and type(sides[0]) is int and sides[0] > 0
    if not square and not (fits and patch is None):
        raise ValueError(f"vision_config.patch_size is {repr(patch)[:60]}; give a whole number, 1 or more")
    if not fits:
        raise ValueError(
            f"patches of {patch!r} pixels and the fields that merge them make image tokens of {repr(unit)[:60]} pixels "
            "a side: config.json is not that of a whole model: get it again"
        )


def check_multiples(height: int, width: int, unit: int) -> None:
    """Raises ValueError that names the nearest size if height or width is no multiple of `unit` pixels."""
    nearest = [max(unit, round(side / unit) * unit) for side in (height, width)]
    if nearest != [height, width]:
        raise ValueError(
            f"height x width is {height} x {width}; both must be multiples of {unit}, the pixels of an image token's "
            f"side: give {nearest[0]} x {nearest[1]}"
        )


def nested_config(name: str, fields: Any, model_type: str) -> PreTrainedConfig:
    """Builds a nested configuration.

    The result is a copy: the outer configuration sets its choice of attention, and another model may hold the original.

    Args:
        name (`str`):
            Field of the outer configuration, for the error.
        fields (`dict`, `PreTrainedConfig` or `None`):
            Fields of the nested configuration, or a ready one.
        model_type (`str`):
            Model type if the fields have none.

    Raises:
        ValueError: for anything that is no configuration of its model type.
    """
    if isinstance(fields, PreTrainedConfig):
        return copy.deepcopy(fields)
    if not isinstance(fields, (dict, type(None))):
        raise ValueError(f"{name} is {repr(fields)[:60]}; give the fields of a configuration")
    try:
        return AutoConfig.for_model(**copy.deepcopy({"model_type": model_type, **(fields or {})}))
    except Exception as error:  # transformers and its strict dataclasses raise a dozen classes of errors
        raise ValueError(f"{name}: {' '.join(str(error).split())[:200]}") from error


def current_processor_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of a processor_config.json, those of older versions under their present names."""
    fields = dict(fields)
    if "patch_size" in fields:
        fields.setdefault("unit", fields.pop("patch_size"))
    old = {
        name: fields.pop(name, default)
        for name, default in (("vision_feature_select_strategy", "default"), ("num_additional_image_tokens", 1))
        if name in fields
    }
    if old:
        strategy, count = (
            old.get("vision_feature_select_strategy", "default"),
            old.get("num_additional_image_tokens", 1),
        )
        if strategy not in ("default", "full"):
            raise ValueError(f"vision_feature_select_strategy is {repr(strategy)[:60]}; give 'default' or 'full'")
        if type(count) is not int or count < 0:
            raise ValueError(f"num_additional_image_tokens is {repr(count)[:60]}; give a whole number, 0 or more")
        fields.setdefault("extra_image_tokens", count - (strategy == "default"))
    if "prompt_prefix" in fields or "prompt_suffix" in fields:
        before, after = fields.pop("prompt_prefix", "USER: "), fields.pop("prompt_suffix", "\n{instruction} ASSISTANT:")
        for name, part in (("prompt_prefix", before), ("prompt_suffix", after)):
            if not isinstance(part, str):
                raise ValueError(f"{name} is {repr(part)[:60]}; give text")
        fields.setdefault("image_template", before + "{image}" + after)
        fields.setdefault("text_template", before + "{caption}" + after)
    return fields


def _fits(value: Any, declared: Any) -> bool:
    origin = get_origin(declared)
    if origin is Literal:
        return isinstance(value, str) and value in get_args(declared)
    if origin is list:
        return isinstance(value, (list, tuple)) and all(_fits(item, get_args(declared)[0]) for item in value)
    if origin is not None:
        return any(_fits(value, option) for option in get_args(declared))
    if declared is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, declared) and (declared is bool or not isinstance(value, bool))


def _type_in_words(declared: Any) -> str:
    origin = get_origin(declared)
    if origin is Literal:
        return " or ".join(map(repr, get_args(declared)))
    if origin is list:
        return f"a list, each {_type_in_words(get_args(declared)[0])}"
    return WORDS[declared] if origin is None else " or ".join(map(_type_in_words, get_args(declared)))
