"""What a forward pass of the whole model returns."""

from dataclasses import dataclass

from torch import Tensor
from transformers.utils import ModelOutput


@dataclass
class ReIDFeatures(ModelOutput):
    r"""Per feature, (B, D) un-normalised, before the batch norm."""

    llm: Tensor | None = None
    vision: Tensor | None = None


@dataclass
class MllmReIDOutput(ModelOutput):
    r"""What one forward pass gives.

    loss: scalar, the mix of all parts; present with labels or person ids.
    image_embeds: (B, D), what `encode_images` gives; present where pixels are all that is given.
    features: per feature ("llm", "vision"), (B, D) un-normalised, before the batch norm.
    text_features: of the captions, (B, D) un-normalised; present with `reid_text`.
    captioned: (B,) bool, which rows of `text_features` have a caption: the others enter no loss.
    id_logits: per ReID head, (N, C): of the images of all processes, then of their captions.
    reid_loss: scalar, the mean of the heads' weighted ID and triplet losses.
    loss_parts: detached scalars by name, for the log.
    language_loss_sums: per branch ("image", "text", and "distillation"), summed over target tokens.
    label_counts: per branch, the number of its target tokens, an int.
    """

    loss: Tensor | None = None
    image_embeds: Tensor | None = None
    features: dict[str, Tensor] | None = None
    text_features: Tensor | None = None
    captioned: Tensor | None = None
    id_logits: dict[str, Tensor] | None = None
    reid_loss: Tensor | None = None
    loss_parts: dict[str, Tensor] | None = None
    language_loss_sums: dict[str, Tensor] | None = None
    label_counts: dict[str, int] | None = None
