"""Qwen2.5-VL and Qwen3-VL: positions in three dimensions (M-RoPE), and features that the first layers add."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .backbone import Backbone, Image
from .tower_qwen_vl import Qwen3Tower, Qwen25Tower
from .towers import TowerOutput


class QwenVLBackbone(Backbone):
    """Qwen2.5-VL and Qwen3-VL.

    Source: Bai et al. 2025, "Qwen2.5-VL Technical Report" and "Qwen3-VL Technical Report".
    """

    model_types = ("qwen2_5_vl", "qwen3_vl")
    towers = {"qwen2_5_vl_vision": Qwen25Tower, "qwen3_vl_vision": Qwen3Tower}
    tower_path = "model.visual"
    projector_paths = ("model.visual.merger", "model.visual.deepstack_merger_list")
    image_begin, image_end = "<|vision_start|>", "<|vision_end|>"

    @property
    def merge(self) -> int:
        """Patches in a row of one image token."""
        merge: int = self.config.vision_config.spatial_merge_size
        return merge

    def check(self, height: int, width: int) -> None:
        """As in other families; blocks that a field lists must be among the tower's."""
        super().check(height, width)
        config = self.config.vision_config
        for name in ("fullatt_block_indexes", "deepstack_visual_indexes"):
            for block in getattr(config, name, None) or ():
                if not 0 <= block < config.depth:
                    last = config.depth - 1
                    raise ValueError(f"mllm_config.vision_config.{name} holds {block}; give blocks from 0 to {last}")

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

    def positions_after(self, grid: tuple[int, int], start: int, length: int) -> Tensor:
        """Returns the positions (3, length): the text continues from the longer side of the image."""
        first = start + max(grid)
        return torch.arange(first, first + length).expand(3, -1)

    def hidden_state(self, states: tuple[Tensor, ...], layer: int, image: Image, start: int) -> Tensor:
        """As in other families, with the features that the language model adds after this layer."""
        features = dict(enumerate(image.deepstack, start=1)).get(layer)
        if features is None:
            return states[layer]
        before, after = start, states[layer].shape[1] - start - features.shape[1]
        return states[layer] + F.pad(features.to(states[layer]), (0, 0, before, after))

    def generation_inputs(self, input_ids: Tensor, embeddings: Tensor, image: Image) -> dict[str, Any]:
        """Returns the features, the grid and the positions of the image, and the features of the first layers."""
        features = BaseModelOutputWithPooling(pooler_output=list(image.embeddings))
        if image.deepstack:
            features["deepstack_features"] = [list(layer) for layer in image.deepstack]
        grid = [1, image.grid[0] * self.merge, image.grid[1] * self.merge]
        is_image = (input_ids == self.config.image_token_id).int()
        grids = torch.tensor([grid] * len(input_ids), device=input_ids.device)
        return {"mm_encoder_outputs": {"image": features}, "image_grid_thw": grids, "mm_token_type_ids": is_image}
