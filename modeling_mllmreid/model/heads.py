"""The ReID head: mean pooling, BNNeck and ID classifier, and the outputs of the model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .tensors import at_least_float32, in_format_of


@dataclass
class ReIDFeatures(ModelOutput):
    r"""The un-normalised features before the batch norm, each of shape (B, D)."""

    llm: Tensor | None = None
    vision: Tensor | None = None


@dataclass
class MllmReIDOutput(ModelOutput):
    r"""Output of [`MllmReIDModel`]'s forward pass.

    Args:
        loss (`torch.Tensor`, *optional*):
            Scalar, the mix of language loss and ReID loss. Present with labels or person ids.
        image_embeds (`torch.Tensor` of shape `(B, D)`, *optional*):
            Result of `encode_images`. Present if only pixels are given.
        features (`dict[str, torch.Tensor]`, *optional*):
            By name ("llm", "vision"), un-normalised features of shape (B, D) before the batch norm.
        text_features (`torch.Tensor` of shape `(B, D)`, *optional*):
            Un-normalised features of the captions. Present with `reid_text`.
        captioned (`torch.BoolTensor` of shape `(B,)`, *optional*):
            Whether a row of `text_features` has a caption. Rows without one enter no loss.
        id_logits (`dict[str, torch.Tensor]`, *optional*):
            By ReID head, logits of shape (N, C) for the images of all processes, then for their captions.
        reid_loss (`torch.Tensor`, *optional*):
            Scalar, the mean of the heads' weighted ID and triplet losses.
        pair_loss (`torch.Tensor`, *optional*):
            Scalar, the loss of pairs. Present with person ids and `pair_weight`.
        reading (`Reading`, *optional*):
            The crops' readings for pairs. Present with `return_reading`.
        loss_parts (`dict[str, torch.Tensor]`, *optional*):
            Detached scalars by name, for the log.
        language_loss_sums (`dict[str, torch.Tensor]`, *optional*):
            By branch ("image", "text" and "distillation"), the loss summed over target tokens.
        label_counts (`dict[str, int]`, *optional*):
            By branch, the number of target tokens.

    Example:

    ```python
    >>> import torch
    >>> from modeling_mllmreid import MllmReIDOutput

    >>> output = MllmReIDOutput(image_embeds=torch.zeros(2, 16))
    >>> output.image_embeds.shape
    torch.Size([2, 16])
    >>> list(output)
    ['image_embeds']

    ```
    """

    loss: Tensor | None = None
    image_embeds: Tensor | None = None
    features: dict[str, Tensor] | None = None
    text_features: Tensor | None = None
    captioned: Tensor | None = None
    id_logits: dict[str, Tensor] | None = None
    reid_loss: Tensor | None = None
    pair_loss: Tensor | None = None
    reading: Any = None
    loss_parts: dict[str, Tensor] | None = None
    language_loss_sums: dict[str, Tensor] | None = None
    label_counts: dict[str, int] | None = None


def mean_pool(hidden_states: Tensor, mask: Tensor | None = None) -> Tensor:
    """Averages over positions in float32 or float64.

    Args:
        hidden_states (`torch.Tensor` of shape `(B, T, D)`):
            Hidden states.
        mask (`torch.BoolTensor` of shape `(B, T)`, *optional*):
            Positions that count; all of them by default.

    Returns:
        `torch.Tensor` of shape `(B, D)`: zeros where no position counts.
    """
    hidden_states = at_least_float32(hidden_states)
    if mask is None:
        return hidden_states.mean(dim=1)
    weights = mask.unsqueeze(-1).to(hidden_states)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class IDClassifier(nn.Linear):
    """The ID classifier's weights, initialised with a normal distribution of standard deviation 0.001.

    It is a class of its own since transformers does not initialise modules without own weights, such as a head.
    """

    std = 0.001


class ReIDHead(nn.Module):
    """BNNeck and ID classifier on one pooled feature.

    The triplet loss uses the feature before the batch norm, and the classifier uses the feature after it. Neither
    batch norm nor classifier has a bias. The weights stay in float32 or float64 in a model of half precision.

    Args:
        feature_size (`int`):
            Size D of the feature.
        num_identities (`int`):
            Number C of identities; 0 means no classifier.
        bnneck (`bool`, *optional*, defaults to `True`):
            Whether there is a batch norm.
        text_bnneck (`bool`, *optional*, defaults to `False`):
            Whether there is a second one for captions. An LLM's latents of captions have another mean and spread than
            those of images; after a batch norm of their own, both have the same.

    Source: Luo et al. 2019, "Bag of Tricks and a Strong Baseline for Deep Person Re-identification".
    """

    def __init__(self, feature_size: int, num_identities: int, bnneck: bool = True, text_bnneck: bool = False):
        super().__init__()
        # Float32 even if the model around it is created in half precision.
        self.format = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.feature_size = feature_size
        self.bottleneck = self._new_bottleneck() if bnneck else nn.Identity()
        self.text_bottleneck = self._new_bottleneck() if text_bnneck else None
        self.classifier = self._new_classifier(num_identities)

    def _new_bottleneck(self) -> nn.BatchNorm1d:
        bottleneck = nn.BatchNorm1d(self.feature_size, dtype=self.format)
        # None instead of frozen zeros: loading a checkpoint would make zeros trainable again.
        bottleneck.register_parameter("bias", None)
        return bottleneck

    def _new_classifier(self, num_identities: int, device: torch.device | None = None) -> IDClassifier | None:
        if not num_identities:
            return None
        return IDClassifier(self.feature_size, num_identities, bias=False, device=device, dtype=self.format)

    def remake_classifier(self, num_identities: int, device: torch.device | None = None) -> None:
        """Replaces the classifier by a new one for other identities; 0 removes it."""
        self.classifier = self._new_classifier(num_identities, device)
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, std=IDClassifier.std)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ReIDHead":
        """Applies `.to()`, `.half()` and the like to the head, but never goes below float32."""

        def convert(values: Tensor) -> Tensor:
            changed = fn(values)
            if not changed.is_floating_point():
                return changed
            self.format = torch.promote_types(changed.dtype, torch.float32)
            # From the old values: half precision has lost their digits.
            return changed if changed.dtype == self.format else values.to(changed.device, self.format)

        super()._apply(convert, recurse)
        return self

    @property
    def fewest_captions(self) -> int:
        """The number of captions that a training step needs: a batch norm of their own needs two."""
        return 1 if self.text_bottleneck is None else 2

    def forward(self, features: Tensor, *, captions: int = 0) -> tuple[Tensor, Tensor | None]:
        """Computes the feature after the batch norm and the ID logits.

        Args:
            features (`torch.Tensor` of shape `(B, D)`):
                Pooled features of images, then of captions.
            captions (`int`, *optional*, defaults to 0):
                How many of the features are of captions.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: features (B, D), and logits (B, C) or None.
        """
        # Autocast would run the linear layer in bfloat16.
        with torch.autocast(features.device.type, enabled=False):
            features = in_format_of(self, at_least_float32(features))
            if self.text_bottleneck is None:
                after = self.bottleneck(features)
            else:
                parts = features.split([len(features) - captions, captions])
                norms = (self.bottleneck, self.text_bottleneck)
                after = torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True) if len(part)])
                if self.training and not captions:
                    # DDP waits for a gradient of every weight.
                    after = after + 0.0 * self.text_bottleneck.weight.sum()
            return after, None if self.classifier is None else self.classifier(after)
