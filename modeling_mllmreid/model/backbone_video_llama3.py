"""VideoLLaMA 3: a tower that takes flattened patches of images of any size, and a projector for each patch."""

import torch
from torch import Tensor, nn

from .backbone import Backbone
from .towers import Tower, TowerOutput


class VideoLlama3Tower(Tower):
    """The SigLIP of VideoLLaMA 3: its positions are rotations by row and column, so any ratio fits."""

    prefix_tokens = 0

    def patches(self, pixel_values: Tensor) -> Tensor:
        """Flattens (B, 3, H, W) to (B * N, 3 * patch^2), row by row."""
        side = self.patch
        squares = pixel_values.unflatten(3, (-1, side)).unflatten(2, (-1, side))
        # To (B, rows, columns, channel, y, x).
        patches: Tensor = squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
        return patches

    def run(self, tower: nn.Module, pixel_values: Tensor, layers: list[int]) -> TowerOutput:
        """As in [`Tower`], with each crop as an image of one step in time whose patches are not averaged."""
        batch, grid = len(pixel_values), self.grid(*pixel_values.shape[2:])
        sizes = torch.tensor([[1, *grid]] * batch, device=pixel_values.device)
        options = {"output_hidden_states": layers} if layers else {}
        output = tower(self.patches(pixel_values), grid_thw=sizes, merge_sizes=torch.ones_like(sizes[:, 0]), **options)
        states = output.hidden_states if layers else ()
        by_crop = tuple(None if state is None else state.unflatten(0, (batch, -1)) for state in states)
        return TowerOutput(by_crop, output.last_hidden_state.unflatten(0, (batch, -1)), grid)


class VideoLlama3Backbone(Backbone):
    """VideoLLaMA 3 with images.

    Source: Zhang et al. 2025, "VideoLLaMA 3: Frontier Multimodal Foundation Models for Image and Video Understanding".
    """

    model_types = ("video_llama_3",)
    towers = {"video_llama_3_vision": VideoLlama3Tower}
    tower_path = "model.vision_model"
    projector_paths = ("model.projector",)
