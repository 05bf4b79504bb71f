"""What a layout is: the names of a project's weights, their new names, and the encoder that they belong to."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ...utils.errors import UserError

Weights = dict[str, Tensor]
# Side information of a camera is added to what every crop gets: one camera, or the mean of all.
MEAN_CAMERA = "mean"
BATCH_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class LayoutOptions:
    """What a checkpoint's weights do not say.

    Args:
        height, width (`int`, *optional*): size of the crops in training.
        stride (`int`, *optional*): stride of the patches.
        camera (`str`, *optional*): number of the camera whose side information every crop gets, or "mean".
        sie_coefficient (`float`, *optional*): factor of the side information in training.
        semantic_weight (`float`, *optional*): SOLIDER's share of semantics.
    """

    height: int | None = None
    width: int | None = None
    stride: int | None = None
    camera: str | None = None
    sie_coefficient: float | None = None
    semantic_weight: float | None = None

    def refuse(self, layout: str, *names: str) -> None:
        """Raises UserError for the first of the named options that is given, as the checkpoint has no use for it."""
        for name in names:
            if getattr(self, name) is not None:
                raise UserError(f"{name}: this checkpoint of the layout {layout} has no use for it: leave it out")


@dataclass(frozen=True)
class Converted:
    """An encoder of the vision form.

    Args:
        vision_config (`PreTrainedConfig`): configuration of the encoder.
        fields (`dict[str, Any]`): fields of `MllmReIDVisionConfig`, with height and width.
        weights (`dict[str, Tensor]`): all weights by their names in the vision form.
    """

    vision_config: PreTrainedConfig
    fields: dict[str, Any]
    weights: Weights


@dataclass(frozen=True)
class Layout:
    """The layout of a project's checkpoints.

    Args:
        name (`str`): name for `--layout`.
        source (`str`): address of the project, where the names and shapes come from.
        marks (`tuple[str, ...]`): regular expressions; each matches a name of every such checkpoint, and all of them
            together match no other layout's.
        names (`tuple[tuple[str, str], ...]`): regular expression of a name, and the new name.
        left_out (`tuple[str, ...]`): regular expressions of weights that the feature does not need.
        build (`Callable`): makes the encoder of the renamed weights.
        pixels (`dict[str, Any]`): mean, standard deviation and resampling of the project's test images.
        shared (`bool`): whether other projects use the same names, so that the user must choose the layout.
    """

    name: str
    source: str
    marks: tuple[str, ...]
    names: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...]
    build: Callable[[Weights, LayoutOptions], Converted]
    pixels: dict[str, Any] = field(default_factory=dict)
    shared: bool = False

    def missing_marks(self, names: Mapping[str, Any]) -> list[str]:
        """Returns the marks that no name matches."""
        return [mark for mark in self.marks if not any(re.fullmatch(mark, name) for name in names)]

    def rename(self, weights: Mapping[str, Tensor]) -> Weights:
        """Returns the weights by their new names. Raises UserError for names that the layout does not have."""
        renamed, unknown = {}, []
        for name, weight in weights.items():
            if any(re.fullmatch(pattern, name) for pattern in self.left_out):
                continue
            new = next((match.expand(new) for old, new in self.names if (match := re.fullmatch(old, name))), None)
            if new is None:
                unknown.append(name)
            else:
                renamed[new] = weight
        if unknown:
            raise UserError(
                f"layout {self.name}: has no place for {len(unknown)} weights, {unknown[0]!r} first: "
                f"the checkpoint is of another architecture than {self.source}"
            )
        return renamed


def numbered(weights: Mapping[str, Any], pattern: str) -> int:
    """Returns how many numbers, from 0, the names have where a pattern has its group.

    Raises UserError if a number is missing in between.
    """
    numbers = {int(match[1]) for name in weights if (match := re.match(pattern, name))}
    if numbers and len(numbers) <= max(numbers):
        missing = next(number for number in range(len(numbers)) if number not in numbers)
        name = pattern.replace("\\", "").partition("(")[0]
        raise UserError(f"the checkpoint has {name}{max(numbers)} and no {name}{missing}: get it again")
    return len(numbers)


def required(weights: Mapping[str, Tensor], name: str) -> Tensor:
    """Returns a renamed weight. Raises UserError if it is missing."""
    if name not in weights:
        raise UserError(f"the checkpoint has no weight that becomes {name}: get it again, or give its --layout")
    return weights[name]


def camera_information(weights: Weights, options: LayoutOptions, layout: str, coefficient: float) -> Tensor | float:
    """Takes the side information of the cameras out of the weights. Returns what every crop gets, or 0 without any.

    Args:
        weights (`dict[str, Tensor]`): renamed weights; "camera_information" has the shape (cameras, ..., D).
        options ([`LayoutOptions`]): camera and coefficient.
        layout (`str`): name of the layout.
        coefficient (`float`): the project's own coefficient.

    Raises:
        UserError: for a camera that the checkpoint does not have.
    """
    table = weights.pop("camera_information", None)
    if table is None:
        options.refuse(layout, "camera", "sie_coefficient")
        return 0.0
    cameras, camera = len(table), options.camera or MEAN_CAMERA
    if camera != MEAN_CAMERA and not (camera.isdecimal() and int(camera) < cameras):
        raise UserError(f"camera {camera!r}: the checkpoint has the cameras 0 to {cameras - 1}: give one, or mean")
    information = table.mean(0) if camera == MEAN_CAMERA else table[int(camera)]
    factor = coefficient if options.sie_coefficient is None else options.sie_coefficient
    return factor * information.reshape(-1)


def joined_batch_norms(weights: Weights, names: list[str]) -> None:
    """Replaces the batch norms of several features by that of the features one after the other, in place."""
    target = "reid_head.bottleneck"
    for part in BATCH_NORM:
        values = [weights.pop(f"{name}.{part}") for name in names if f"{name}.{part}" in weights]
        if values:
            weights[f"{target}.{part}"] = torch.cat(values) if values[0].ndim else values[0]
