"""The vision tower of Qwen2.5-VL and Qwen3-VL: it takes flattened patches and merges them itself."""

import torch
from torch import Tensor, nn

from .towers import Tower, TowerOutput


class QwenTower(Tower):
    """The tower of Qwen-VL: it takes flattened patches, and its merger computes the image tokens."""

    depth_field = "depth"
    prefix_tokens = 0

    @property
    def unit(self) -> int:
        """Pixels that a side must be a multiple of: the tower merges squares of patches."""
        merge: int = self.config.spatial_merge_size
        return self.patch * merge

    def patches(self, pixel_values: Tensor) -> Tensor:
        """Flattens (B, 3, H, W) to (B * N, 3 * t * patch^2), square by square, each crop repeated over time t."""
        (rows, columns), merge, side = self.grid(*pixel_values.shape[2:]), self.config.spatial_merge_size, self.patch
        shape = (rows // merge, merge, side)
        squares = pixel_values.unflatten(3, (columns // merge, merge, side)).unflatten(2, shape)
        # To (B, rows of squares, columns of squares, row in a square, column in it, channel, time, y, x).
        ordered = squares.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6)
        times = self.config.temporal_patch_size
        patches: Tensor = ordered.expand(*ordered.shape[:6], times, *ordered.shape[7:]).flatten(5).flatten(0, 4)
        return patches

    def run(self, tower: nn.Module, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """As in [`Tower`]; the patches of a state are in the tower's own order."""
        rows, columns = grid = self.grid(*pixel_values.shape[2:])
        sizes = torch.tensor([[1, rows, columns]] * len(pixel_values), device=pixel_values.device)
        options = {"output_hidden_states": layers} if layers else {}
        output = tower(self.patches(pixel_values), grid_thw=sizes, **options)

        def by_crop(states: Tensor) -> Tensor:
            return states.reshape(len(pixel_values), -1, states.shape[-1])

        states = tuple(None if state is None else by_crop(state) for state in output.hidden_states) if layers else ()
        projected = [output.pooler_output, *getattr(output, "deepstack_features", ())]
        return TowerOutput(states, by_crop(output.last_hidden_state), grid, tuple(map(by_crop, projected)))
