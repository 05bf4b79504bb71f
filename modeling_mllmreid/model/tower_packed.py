"""Towers that take the patches of all crops as one sequence, and their form that can be traced for any batch."""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.vision_utils import get_vision_position_ids

from .towers import Tower

# transformers passes bounds to an attention with the first word in its name, and splits the states for all others.
ATTENTION = "flash_within_equal_crops"


class PackedTower(Tower):
    """A tower that takes the patches of all crops as one sequence, and a grid for each crop."""

    prefix_tokens = 0

    @property
    def merge(self) -> int:
        """Patches in a row of an image token."""
        return 1

    def constants(self, tower: Any, sizes: Tensor) -> dict[str, Any]:
        """Returns what the tower computes out of a crop's grid, by the names of its arguments.

        Args:
            tower (`nn.Module`):
                The encoder.
            sizes (`torch.LongTensor` of shape `(1, 3)`):
                1, rows and columns.

        Returns:
            `dict[str, torch.Tensor | numpy.ndarray]`: tensors with a row for each patch or image token; arrays with the
            bounds of the parts that attend to themselves.
        """
        bounds = np.array([0, sizes.prod().item()])
        return {"position_ids": get_vision_position_ids(sizes, self.merge), "cu_seqlens": bounds}

    def traceable(self, tower: Any, height: int, width: int) -> nn.Module:
        """As in [`Tower`], for crops of this size alone. It is a copy."""
        return EqualCrops(tower, self.constants(tower, torch.tensor([[1, *self.grid(height, width)]])))


class EqualCrops(nn.Module):
    """A copy of a tower for crops of one size: positions and windows are constants.

    transformers reads them out of the values of a grid, and splits the states by crop. Tracing can do neither.
    """

    def __init__(self, tower: nn.Module, constants: dict[str, Any]):
        super().__init__()
        self.tower: Any = copy.deepcopy(tower)
        self.tower.config._attn_implementation = ATTENTION
        self.constants = constants

    def forward(self, patches: Tensor, grid_thw: Tensor, **options: Any) -> Any:
        """Runs the tower on patches (B * N, D) of B crops with the sizes (B, 3)."""
        crops = grid_thw.shape[0]  # not `len`, which tracing takes for a constant
        constants = {name: _for_each_crop(name, value, crops) for name, value in self.constants.items()}
        return self.tower(patches, grid_thw=grid_thw, **constants, **options)


def _for_each_crop(name: str, value: Any, crops: int) -> Any:
    """Repeats a tensor for each crop; indices continue from crop to crop. Bounds are those of one crop."""
    if isinstance(value, np.ndarray):
        return value
    step = len(value) if name == "window_index" else 0
    first = step * torch.arange(crops).view(-1, *[1] * value.ndim)
    return (value + first.to(value.dtype)).flatten(0, 1)


def attention_within_equal_crops(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **options: Any
) -> tuple[Tensor, None]:
    """Attends within the parts of each crop. States: (1, heads, B * N, D). Returns (1, B * N, heads, D)."""
    lengths = np.diff(options["cu_seq_lens_q"]).tolist()

    def parts(states: Tensor) -> tuple[Tensor, ...]:
        # (heads, B, length of the part, D) each.
        pieces: tuple[Tensor, ...] = states[0].unflatten(1, (-1, sum(lengths))).split(lengths, dim=2)
        return pieces

    outputs = [
        (queries @ keys.transpose(2, 3) * options["scaling"]).softmax(dim=-1) @ values
        for queries, keys, values in zip(parts(query), parts(key), parts(value), strict=True)
    ]
    return torch.cat(outputs, dim=2).flatten(1, 2).transpose(0, 1)[None], None


AttentionInterface.register(ATTENTION, attention_within_equal_crops)
