"""VideoLLaMA 3: a tower that takes flattened patches of images of any size, and a projector for each patch."""

from typing import Any

import torch
from torch import Tensor, nn

from .backbone import Backbone
from .tower_packed import PackedTower
from .towers import TowerOutput


class VideoLlama3Tower(PackedTower):
    """The SigLIP of VideoLLaMA 3: its positions are rotations by row and column, so any ratio fits."""

    def patches(self, pixel_values: Tensor) -> Tensor:
        """Flattens (B, 3, H, W) to (B * N, 3 * patch^2), row by row."""
        side = self.patch
        squares = pixel_values.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        # To (B, rows, columns, channel, y, x).
        patches: Tensor = squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
        return patches

    def run(self, tower: nn.Module, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """As in [`Tower`], with each crop as an image of one step in time whose patches are not averaged."""
        batch, grid = pixel_values.shape[0], self.grid(*pixel_values.shape[2:])
        sizes = torch.tensor([[1, *grid]], device=pixel_values.device).expand(batch, -1)
        options = {"output_hidden_states": layers} if layers else {}
        output = tower(self.patches(pixel_values), grid_thw=sizes, merge_sizes=torch.ones_like(sizes[:, 0]), **options)
        states = output.hidden_states if layers else ()
        by_crop = tuple(None if state is None else state.unflatten(0, (batch, -1)) for state in states)
        return TowerOutput(by_crop, output.last_hidden_state.unflatten(0, (batch, -1)), grid)

    def traceable(self, tower: Any, height: int, width: int) -> nn.Module:
        """As in [`PackedTower`]."""
        equal: Any = super().traceable(tower, height, width)
        # It reads the sizes' values to merge patches, of which images have none.
        equal.tower.pixel_unshuffle = _unchanged
        return equal  # type: ignore[no-any-return]


def _unchanged(states: Tensor, *sizes: Tensor) -> Tensor:
    """Returns the states as they are."""
    return states


class VideoLlama3Backbone(Backbone):
    """VideoLLaMA 3 with images.

    Source: Zhang et al. 2025, "VideoLLaMA 3: Frontier Multimodal Foundation Models for Image and Video Understanding".
    """

    model_types = ("video_llama_3",)
    towers = {"video_llama_3_vision": VideoLlama3Tower}
    tower_path = "model.vision_model"
    projector_paths = ("model.projector",)
