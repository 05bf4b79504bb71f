"""Gemma 3: image tokens see one another, and the projector averages squares of patches."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .backbone import Backbone, Image
from .tensors import in_format_of
from .towers import TowerOutput


class Gemma3Backbone(Backbone):
    """Gemma 3 from 4B on, with one view of the crop.

    Source: Gemma Team 2025, "Gemma 3 Technical Report".
    """

    model_types = ("gemma3",)
    image_begin, image_end = "\n\n<start_of_image>", "<end_of_image>\n\n"

    @property
    def merge(self) -> int:
        """Patches in a row of one image token."""
        vision, tokens = self.config.vision_config, self.config.mm_tokens_per_image
        patches, side = vision.image_size // vision.patch_size, math.isqrt(tokens)
        if side**2 != tokens or patches % side:
            raise ValueError(f"{tokens} image tokens do not divide {patches} x {patches} patches")
        merge: int = patches // side
        return merge

    def project(self, mllm: nn.Module, output: TowerOutput) -> Image:
        """Averages squares of patches and projects them; Gemma's own projector expects a square image."""
        projector: Any = mllm.get_submodule(self.projector_paths[0])
        patches = in_format_of(projector, output.patches(None))
        squares = F.avg_pool2d(patches.transpose(1, 2).unflatten(2, output.grid), self.merge)
        normed = projector.mm_soft_emb_norm(squares.flatten(2).transpose(1, 2))
        embeddings = torch.matmul(normed, projector.mm_input_projection_weight)
        return Image(embeddings, (squares.shape[2], squares.shape[3]))

    def language_inputs(
        self, mllm: nn.Module, embeddings: Tensor, attention_mask: Tensor | None, image: Image, start: int
    ) -> dict[str, Any]:
        """Returns masks by kind of layer, in which the image tokens see one another."""
        from transformers.models.gemma3.modeling_gemma3 import create_masks_for_vision_model

        block = torch.full(embeddings.shape[:2], -1, dtype=torch.long, device=embeddings.device)
        block[:, start : start + image.embeddings.shape[1]] = 0
        masks = create_masks_for_vision_model(
            # The language model's own: its choice of attention decides the kind of mask.
            config=mllm.get_submodule(self.language_path).config,
            inputs_embeds=embeddings,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=None,
            block_sequence_ids=block,
        )
        return {"attention_mask": masks}

    def generation_inputs(self, input_ids: Tensor, embeddings: Tensor, image: Image) -> dict[str, Any]:
        """Returns the features and the positions of the image."""
        is_image = (input_ids == self.config.image_token_id).long()
        features = BaseModelOutputWithPooling(pooler_output=image.embeddings)
        return {"mm_encoder_outputs": {"image": features}, "token_type_ids": is_image}
