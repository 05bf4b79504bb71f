"""Converts a published ReID checkpoint to the vision form."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ..model import MllmReIDVisionConfig, MllmReIDVisionModel, MllmReIDVisionProcessor
from ..model.crops import crop_image_processor
from ..model.weights import check_finite
from ..utils.errors import UserError
from .layouts.fast_reid import FAST_REID
from .layouts.layout import Layout, LayoutOptions, Weights
from .layouts.osnet import OSNET
from .layouts.swin import MEGADESCRIPTOR, SOLIDER
from .layouts.vit import CLIP_REID, PERSONVIT, TRANSREID

_LAYOUTS = (CLIP_REID, TRANSREID, OSNET, SOLIDER, MEGADESCRIPTOR, PERSONVIT, FAST_REID)
LAYOUTS: dict[str, Layout] = {layout.name: layout for layout in _LAYOUTS}
# Entries under which training programs store the weights.
NESTED = (
    *("state_dict", "model", "module", "teacher", "net", "model_state_dict"),
    *("params_ema", "params", "model_ema", "state_dict_ema", "weights"),
)
# Of distributed and of compiled models.
PREFIX = re.compile(r"^(module\.|_orig_mod\.)+")
BIAS = "reid_head.bottleneck.bias"


def read_checkpoint(file: Path) -> Weights:
    """Reads the weights of a checkpoint. Nothing of it is run: pickles hold tensors and plain values alone.

    Args:
        file (`Path`): a pickle of `torch.save`, or a file of safetensors.

    Returns:
        `dict[str, Tensor]`: the weights by name, without the prefixes of distributed and compiled models.

    Raises:
        UserError: if the file cannot be read, holds no weights, or needs code to be run.
    """
    if not file.is_file():
        raise UserError(f"file {file}: no such file: give the checkpoint of a published model")
    try:
        content: Any = load_file(file) if file.suffix == ".safetensors" else _unpickle(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"file {file}: cannot be read ({_short(error)}): get it again") from error
    for _ in range(3):
        inner = next((name for name in NESTED if isinstance(content, Mapping) and _holds_weights(content, name)), None)
        content = content if inner is None else content[inner]
    found = content if isinstance(content, Mapping) else {}
    weights = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    if not weights:
        entries = f" among {', '.join(map(str, found))[:200]}" if found else ""
        raise UserError(f"file {file}: holds no weights{entries}: give a checkpoint with a state_dict")
    return {PREFIX.sub("", name): weight for name, weight in weights.items()}


def _unpickle(file: Path) -> Any:
    """Reads a pickle of tensors and plain values."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged files fail in any way
        if "Weights only load failed" in str(error):
            name = next(iter(re.findall(r"GLOBAL ([\w.]+)", str(error))), "more than tensors")
            raise UserError(
                f"file {file}: its pickle needs {name} to be run, and no pickle is run: save its state_dict alone, "
                "where it comes from"
            ) from error
        raise UserError(f"file {file}: not a checkpoint of torch ({_short(error)}): get it again") from error


def _holds_weights(content: Mapping[Any, Any], name: str) -> bool:
    inner = content.get(name)
    return isinstance(inner, Mapping) and len(inner) > 0


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def find_layout(weights: Mapping[str, Tensor], name: str | None) -> Layout:
    """Returns the layout of a checkpoint, by name or by the names of its weights.

    Raises:
        UserError: for an unknown name, and for weights of no known layout or of a shared one.
    """
    if name is not None:
        if name not in LAYOUTS:
            nearest = difflib.get_close_matches(name[:80], LAYOUTS, 1, cutoff=0.0)[0]
            raise UserError(f"layout {name!r}: give one of {', '.join(LAYOUTS)}: did you mean {nearest!r}?")
        return LAYOUTS[name]
    fitting = [layout for layout in _LAYOUTS if not layout.missing_marks(weights)]
    own = [layout for layout in fitting if not layout.shared]
    if len(own) == 1:
        return own[0]
    if fitting:
        names = " or ".join(layout.name for layout in own or fitting)
        raise UserError(
            f"layout: the weights have names that several projects use: give --layout {names} if it is that"
        )
    layout = min(_LAYOUTS, key=lambda layout: len(layout.missing_marks(weights)) / len(layout.marks))
    mark = layout.missing_marks(weights)[0].replace("\\", "")
    near = difflib.get_close_matches(mark, weights, 2, cutoff=0.0)
    raise UserError(
        f"layout: the names of the weights are those of no known layout ({', '.join(LAYOUTS)}). The nearest is "
        f"{layout.name}, without {mark}; the nearest names here are {', '.join(near)}: give --layout, or a checkpoint "
        "of a known project"
    )


def convert(
    weights: Weights, layout: Layout, options: LayoutOptions, **fields: Any
) -> tuple[MllmReIDVisionModel, MllmReIDVisionProcessor]:
    """Makes a vision form of a published checkpoint.

    Args:
        weights (`dict[str, Tensor]`): the weights by their published names.
        layout ([`Layout`]): their layout.
        options ([`LayoutOptions`]): what the weights do not say.
        **fields: fields of [`MllmReIDVisionConfig`], such as `trained_on`, and `image_mean`, `image_std` of its
            processor, in place of the project's own.

    Returns:
        `tuple[MllmReIDVisionModel, MllmReIDVisionProcessor]`

    Raises:
        UserError: if a weight is missing, unknown, of another size or not finite, and for sizes that do not fit.
    """
    pixels = {name: fields.pop(name) for name in ("image_mean", "image_std") if name in fields}
    renamed = layout.rename(weights)
    _check_values(renamed, layout.name)
    renamed = {name: value.float() if value.is_floating_point() else value for name, value in renamed.items()}
    try:
        converted = layout.build(renamed, options)
    except UserError:
        raise
    except (IndexError, RuntimeError, TypeError, ValueError) as error:  # too few axes, or sizes that do not fit
        message = f"layout {layout.name}: its weights have other shapes ({_short(error)}): another checkpoint's"
        raise UserError(message) from error
    found = converted.weights
    settings = {**converted.fields, **fields, "converted_from": f"{layout.name}, {layout.source}"}
    bias = found.pop(BIAS, None)
    if bias is not None and settings.get("feature_after_bn", True) and bias.any():
        raise UserError(f"layout {layout.name}: its batch norm has a bias, which the feature here does not have")
    try:
        config = MllmReIDVisionConfig(vision_config=converted.vision_config, **settings)
        # Names and shapes are compared before there is memory for the model.
        with torch.device("meta"):
            _check_names(MllmReIDVisionModel(config).state_dict(), found, layout.name)
        check_finite(found, "the checkpoint")
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"layout {layout.name}: {error}") from error
    model = MllmReIDVisionModel(config).eval()
    model.load_state_dict({**model.state_dict(), **found})
    size: Any = {"height": config.height, "width": config.width}
    image_processor = crop_image_processor(size, **(layout.pixels | pixels))
    return model, MllmReIDVisionProcessor(image_processor)


def _check_values(weights: Mapping[str, Tensor], layout: str) -> None:
    """Raises UserError for weights that are not plain floats, each with memory of its own; counters are numbers."""
    for name, value in weights.items():
        plain = value.layout == torch.strided and not value.is_quantized and not value.is_meta
        # A view can repeat a few numbers without end.
        plain = plain and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
        if not plain or ((value.ndim or value.is_complex()) and not value.is_floating_point()):
            kind = f"{value.dtype}, {value.layout}".replace("torch.", "")
            raise UserError(
                f"layout {layout}: the weight that becomes {name} is not plain floats ({kind}): get it again"
            )


def _check_names(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], layout: str) -> None:
    """Raises UserError for a weight that is missing, unknown or of another size; counters may be missing."""
    for name in sorted(expected.keys() ^ found.keys()):
        if name in found:
            raise UserError(f"layout {layout}: the encoder has no weight {name}: the checkpoint is another one's")
        if not name.endswith("num_batches_tracked"):
            raise UserError(f"layout {layout}: no weight of the checkpoint becomes {name}: get it again")
    for name, value in found.items():
        if value.shape != expected[name].shape:
            sizes = f"{tuple(value.shape)}, not {tuple(expected[name].shape)}"
            raise UserError(f"layout {layout}: the weight that becomes {name} is {sizes}: another checkpoint's")
