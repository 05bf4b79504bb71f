"""The vision tower of Qwen2.5-VL and Qwen3-VL: it takes flattened patches and merges them itself."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_interpolation_indices_and_weights, get_vision_window_index

from .tower_packed import PackedTower
from .towers import TowerOutput


class QwenTower(PackedTower):
    """A tower of Qwen-VL: it takes flattened patches, and its merger computes the image tokens."""

    depth_field = "depth"

    @property
    def merge(self) -> int:
        """Patches in a row of an image token."""
        merge: int = self.config.spatial_merge_size
        return merge

    @property
    def unit(self) -> int:
        """Pixels that a side must be a multiple of: the tower merges squares of patches."""
        return self.patch * self.merge

    def patches(self, pixel_values: Tensor) -> Tensor:
        """Flattens (B, 3, H, W) to (B * N, 3 * t * patch^2), square by square, each crop repeated over time t."""
        (rows, columns), merge, side = self.grid(*pixel_values.shape[2:]), self.merge, self.patch
        shape = (rows // merge, merge, side)
        squares = pixel_values.unflatten(3, (columns // merge, merge, side)).unflatten(2, shape)
        # To (B, rows of squares, columns of squares, row in a square, column in it, channel, time, y, x).
        ordered = squares.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
        times = self.config.temporal_patch_size
        patches: Tensor = ordered.expand(*ordered.shape[:6], times, *ordered.shape[7:]).flatten(5).flatten(0, 4)
        return patches

    def run(self, tower: nn.Module, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """As in [`Tower`]; the patches of a state are in the tower's own order."""
        grid = self.grid(*pixel_values.shape[2:])
        batch = pixel_values.shape[0]
        sizes = torch.tensor([[1, *grid]], device=pixel_values.device).expand(batch, -1)
        options = {"output_hidden_states": layers} if layers else {}
        output = tower(self.patches(pixel_values), grid_thw=sizes, **options)

        def by_crop(states: Tensor) -> Tensor:
            return states.reshape(batch, -1, states.shape[-1])

        states = tuple(None if state is None else by_crop(state) for state in output.hidden_states) if layers else ()
        projected = [output.pooler_output, *getattr(output, "deepstack_features", ())]
        return TowerOutput(states, by_crop(output.last_hidden_state), grid, tuple(map(by_crop, projected)))


class Qwen25Tower(QwenTower):
    """The tower of Qwen2.5-VL: most of its blocks attend within windows."""

    def constants(self, tower: Any, sizes: Tensor) -> dict[str, Any]:
        """As in [`PackedTower`], with the order of the image tokens by window."""
        order, windows = get_vision_window_index(sizes, self.merge, self.config.window_size, self.patch)
        return {**super().constants(tower, sizes), "window_index": order, "cu_window_seqlens": windows.numpy()}


class Qwen3Tower(QwenTower):
    """The tower of Qwen3-VL: it interpolates a table of positions."""

    def constants(self, tower: Any, sizes: Tensor) -> dict[str, Any]:
        """As in [`PackedTower`], with the entries of the table that each patch mixes."""
        indices, weights = get_vision_interpolation_indices_and_weights(
            sizes, tower.num_grid_per_side, tower.interpolation_mode, tower.interpolation_align_corners, self.merge
        )
        return {**super().constants(tower, sizes), "interp_indices": indices, "interp_weights": weights}
