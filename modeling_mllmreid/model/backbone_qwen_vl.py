"""Qwen2.5-VL and Qwen3-VL: a tower that merges its own patches, and positions in three dimensions (M-RoPE)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .backbone import Backbone, Image
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


class QwenVLBackbone(Backbone):
    """Qwen2.5-VL and Qwen3-VL.

    Source: Bai et al. 2025, "Qwen2.5-VL Technical Report" and "Qwen3-VL Technical Report".
    """

    model_types = ("qwen2_5_vl", "qwen3_vl")
    towers = {"qwen2_5_vl_vision": QwenTower, "qwen3_vl_vision": QwenTower}
    tower_path = "model.visual"
    projector_paths = ("model.visual.merger", "model.visual.deepstack_merger_list")
    image_begin, image_end = "<|vision_start|>", "<|vision_end|>"

    @property
    def merge(self) -> int:
        """Patches in a row of one image token."""
        merge: int = self.config.vision_config.spatial_merge_size
        return merge

    def project(self, mllm: nn.Module, output: TowerOutput) -> Image:
        """Returns what the tower's mergers computed."""
        embeddings, *deepstack = output.projected
        return Image(embeddings, (output.grid[0] // self.merge, output.grid[1] // self.merge), tuple(deepstack))

    def language_inputs(
        self, mllm: nn.Module, embeddings: Tensor, attention_mask: Tensor | None, image: Image, start: int
    ) -> dict[str, Any]:
        """Returns positions (3, B, T) in time, height and width, and in Qwen3-VL the features of the first layers."""
        batch, length = embeddings.shape[:2]
        rows, columns = image.grid
        end = start + rows * columns
        positions = torch.arange(length, device=embeddings.device).expand(3, -1).clone()
        # The image takes one step in time; the text after it continues from its longer side.
        row, column = (axis.flatten() for axis in torch.meshgrid(*map(torch.arange, image.grid), indexing="ij"))
        positions[0, start:end] = start
        positions[1, start:end] = start + row.to(positions)
        positions[2, start:end] = start + column.to(positions)
        positions[:, end:] += max(rows, columns) - rows * columns
        inputs: dict[str, Any] = {
            "attention_mask": attention_mask,
            "position_ids": positions[:, None].expand(-1, batch, -1),
        }
        if image.deepstack:
            is_image = torch.zeros(batch, length, dtype=torch.bool, device=embeddings.device)
            is_image[:, start:end] = True
            inputs |= {
                "visual_pos_masks": is_image,
                "deepstack_visual_embeds": [f.flatten(0, 1) for f in image.deepstack],
            }
        return inputs

    def hidden_state(self, states: tuple[Tensor, ...], layer: int, image: Image, start: int) -> Tensor:
        """As in other families, with the features that the language model adds after this layer."""
        features = dict(enumerate(image.deepstack, start=1)).get(layer)
        if features is None:
            return states[layer]
        before, after = start, states[layer].shape[1] - start - features.shape[1]
        return states[layer] + F.pad(features.to(states[layer]), (0, 0, before, after))

    def generation_inputs(self, input_ids: Tensor, image: Image) -> dict[str, Any]:
        """As in other families, with the grid, the positions of the image, and the features of the first layers."""
        inputs = super().generation_inputs(input_ids, image)
        inputs["mm_encoder_outputs"]["image"]["deepstack_features"] = [list(features) for features in image.deepstack]
        grid = [1, image.grid[0] * self.merge, image.grid[1] * self.merge]
        is_image = (input_ids == self.config.image_token_id).int()
        grids = torch.tensor([grid] * len(input_ids), device=input_ids.device)
        return {**inputs, "image_grid_thw": grids, "mm_token_type_ids": is_image}
