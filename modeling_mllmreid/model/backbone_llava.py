"""LLaVA and LLaVA-OneVision: a projector that takes the patches one by one, and any vision tower."""

from typing import Any

import torch
from torch import Tensor, nn

from .backbone import Backbone, Image
from .tensors import in_format_of, on_device_of
from .towers import TowerOutput


class LlavaBackbone(Backbone):
    """LLaVA-1.5 and its relatives, with a CLIP, SigLIP, DINOv2 or other tower.

    Source: Liu et al. 2023, "Improved Baselines with Visual Instruction Tuning".
    """

    model_types = ("llava",)

    @property
    def projected_layers(self) -> list[int | None]:
        """Indices of the tower's hidden states that the projector reads."""
        layers = self.config.vision_feature_layer
        if layers == []:
            raise ValueError("mllm_config.vision_feature_layer is []; give at least one layer")
        return [layers] if isinstance(layers, int) else list(layers)

    @property
    def dropped_states(self) -> int:
        """Number of states in front of the image tokens: LLaVA drops the first one, whatever it is, or none."""
        return 1 if self.config.vision_feature_select_strategy == "default" else 0

    @property
    def extra_image_tokens(self) -> int:
        """States of the tower's prefix that become image tokens; -1 where LLaVA drops a patch."""
        return self.tower.prefix_tokens - self.dropped_states

    def project(self, mllm: nn.Module, output: TowerOutput) -> Image:
        """Projects the states of one or several layers."""
        projector = mllm.get_submodule(self.projector_paths[0])
        states = [on_device_of(projector, self.pooled_states(output, layer)) for layer in self.projected_layers]
        selected = torch.cat(states, dim=-1)
        return Image(projector(in_format_of(projector, selected)), output.grid)


class LlavaOnevisionBackbone(LlavaBackbone):
    """LLaVA-OneVision with one view of the crop, as it reads each of several images.

    Source: Li et al. 2024, "LLaVA-OneVision: Easy Visual Task Transfer".
    """

    model_types = ("llava_onevision",)
    projector_paths = ("model.multi_modal_projector", "model.image_newline")

    @property
    def extra_image_tokens(self) -> int:
        """As in LLaVA, and the learned newline after the image."""
        return super().extra_image_tokens + 1

    def project(self, mllm: Any, output: TowerOutput) -> Image:
        """As in LLaVA, and adds the learned newline."""
        image = super().project(mllm, output)
        newline: Tensor = mllm.model.image_newline.to(image.embeddings).expand(len(image.embeddings), 1, -1)
        return image._replace(embeddings=torch.cat([image.embeddings, newline], dim=1))
