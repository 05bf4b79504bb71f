"""From hidden states to an identity: mean pooling, BNNeck and ID classifier, and the outputs of the model."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .tensors import at_least_float32, in_format_of


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


def mean_pool(hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over positions, float32 at least: (B, D). hidden_states: (B, T, D); mask: (B, T), True where counted."""
    hidden_states = at_least_float32(hidden_states)
    if mask is None:
        return hidden_states.mean(dim=1)
    weights = mask.unsqueeze(-1).to(hidden_states)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class IDClassifier(nn.Linear):
    """The ID classifier's rows, initialised with N(0, 0.001). A class of its own: transformers skips the
    initialisation of modules that hold no weights themselves, as a head does not.
    """

    std = 0.001


class ReIDHead(nn.Module):
    """BNNeck and ID classifier on one pooled feature.

    The triplet loss takes the feature before the batch norm, the classifier the one after it; neither norm nor
    classifier has a bias.
    Source: Luo et al. 2019, "Bag of Tricks and a Strong Baseline for Deep Person Re-identification".
    """

    def __init__(self, feature_size: int, num_identities: int, bnneck: bool = True):
        super().__init__()
        # Also where the model around it is made in half precision.
        self.format = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.bottleneck = nn.BatchNorm1d(feature_size, dtype=self.format) if bnneck else nn.Identity()
        if bnneck:
            # None, not frozen at zero: loading a checkpoint would make it trainable again.
            self.bottleneck.register_parameter("bias", None)
        self.feature_size = feature_size
        self.classifier = self._new_classifier(num_identities)

    def _new_classifier(self, num_identities: int, device: torch.device | None = None) -> IDClassifier | None:
        if not num_identities:
            return None
        return IDClassifier(self.feature_size, num_identities, bias=False, device=device, dtype=self.format)

    def remake_classifier(self, num_identities: int, device: torch.device | None = None) -> None:
        """A new classifier, N(0, 0.001), for other identities; 0 drops it."""
        self.classifier = self._new_classifier(num_identities, device)
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=IDClassifier.std)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ReIDHead":
        """As every module's, behind `.to()` and `.half()`: the head moves along, but never below float32."""

        def kept(values: Tensor) -> Tensor:
            changed = fn(values)
            if not changed.is_floating_point():
                return changed
            self.format = torch.promote_types(changed.dtype, torch.float32)
            # From the old values: by way of half precision their digits would be lost.
            return changed if changed.dtype == self.format else values.to(changed.device, self.format)

        return super()._apply(kept, recurse)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """features: (B, D). Returns the feature after the neck (B, D) and the ID logits (B, C) or None."""
        # Autocast would turn the linear layer to bfloat16.
        with torch.autocast(features.device.type, enabled=False):
            after = self.bottleneck(in_format_of(self, at_least_float32(features)))
            return after, None if self.classifier is None else self.classifier(after)
