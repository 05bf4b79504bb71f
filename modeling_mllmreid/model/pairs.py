"""Pairs of crops: each crop is read on its own, and one question reads both.

The language model reads every crop after the same prefix, as it does for an embedding, and its keys and values are
kept: the crop's reading. A question about two crops attends to the readings of both. They have the same positions, so
no crop is the first one, and the score is symmetric. A pair costs the tokens of the question alone.

Source: Ma et al. 2024, "Block-Attention for Efficient Prefilling", for readings of blocks that do not see each other.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicLayer

from .tensors import at_least_float32


class Reading(NamedTuple):
    """What the language model keeps of B crops: keys and values of each layer at the prefix and at the image.

    Args:
        keys, values (`tuple[torch.Tensor, ...]`):
            By layer, (B, heads, prefix + image tokens, D).
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class _Recorded(DynamicLayer):
    """Keeps the keys and values of one pass. To the pass itself the cache is empty.

    Activation checkpointing runs a layer twice. The second run gets its own tensors back, and changes nothing.
    """

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self.keys is None:
            self.keys, self.values = key_states, value_states
        return key_states, value_states

    def get_seq_length(self) -> int:
        return 0


class _Both(DynamicLayer):
    """Gives each question the readings of two crops. A layer gathers its own: those of all layers would fill memory."""

    def __init__(self, states: Sequence[Tensor], others: Sequence[Tensor], first: Tensor, second: Tensor, start: int):
        super().__init__()
        self.keys, self.values = states
        self.other_keys, self.other_values = others
        self.first, self.second, self.start = first.to(self.keys.device), second.to(self.other_keys.device), start

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys = self._joined(self.keys, self.other_keys, key_states)
        return keys, self._joined(self.values, self.other_values, value_states)

    def _joined(self, states: Any, others: Tensor, own: Tensor) -> Tensor:
        parts = [states[self.first], others[:, :, self.start :][self.second]]
        return torch.cat([*(part.to(own) for part in parts), own], dim=2)

    def get_seq_length(self) -> int:
        return 2 * self.keys.shape[2] - self.start


def recorder(layers: nn.ModuleList) -> Cache:
    """Returns an empty cache that records a pass through the layers of a language model."""
    keep_cache(layers)
    return Cache(layers=[_Recorded() for _ in layers])


def keep_cache(layers: nn.ModuleList) -> None:
    """Lets layers that are checkpointed use the caches of this module, which a second run does not change."""
    for layer in layers:
        layer._can_checkpoint_with_cache = True


def recorded(cache: Cache, length: int) -> Reading:
    """Returns the first `length` positions that a cache of `recorder` has recorded.

    Raises:
        ValueError: if a layer kept nothing.
    """
    keys, values = [], []
    for number, layer in enumerate(cache.layers):
        if layer.keys is None:
            raise ValueError(
                f"layer {number} of the language model keeps no keys: pairs need a model that can generate"
            )
        keys.append(layer.keys[:, :, :length])
        values.append(layer.values[:, :, :length])
    return Reading(tuple(keys), tuple(values))


def pair_cache(reading: Reading, others: Reading, first: Tensor, second: Tensor, start: int) -> Cache:
    """Returns a cache in which question n sees the crops first[n] and second[n].

    Args:
        reading, others ([`Reading`]):
            The first and the second crops.
        first, second (`torch.LongTensor` of shape `(N,)`):
            Places in both.
        start (`int`):
            Length of the prefix, which a question sees once.
    """
    layers = zip(
        zip(reading.keys, reading.values, strict=True), zip(others.keys, others.values, strict=True), strict=True
    )
    return Cache(layers=[_Both(states, other, first, second, start) for states, other in layers])


def pair_length(reading: Reading, start: int) -> int:
    """Returns the number of positions that a question about two crops sees before itself."""
    return 2 * reading.keys[0].shape[2] - start


def check_window(config: PreTrainedConfig, length: int) -> None:
    """Raises ValueError if layers of a language model see fewer than `length` positions back.

    They would see one crop in part, and which one would depend on the order.
    """
    window, kinds = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if isinstance(window, int) and window <= length and (kinds is None or "sliding_attention" in kinds):
        raise ValueError(
            f"layers of the language model see {window} positions, two crops take {length}; make crops smaller"
        )


# ---- training ------------------------------------------------------------------------------------------------------


def mine_pairs(features: Tensor, person_ids: Tensor, camera_ids: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Chooses two pairs for each crop of a batch: one with the same person, and one with another person.

    The positive is any crop of the person, from another camera if there is one. The negative is the crop of another
    person with the nearest feature, or in half of the pairs any: at the start of a training, the nearest alone are
    too hard.

    Args:
        features (`torch.Tensor` of shape `(B, D)`):
            Features; they get no gradient.
        person_ids (`torch.LongTensor` of shape `(B,)`):
            Labels.
        camera_ids (`torch.LongTensor` of shape `(B,)`, *optional*):
            Cameras.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: places of the first and of the second crops (N,), and
        whether they are one person, float32 (N,). A crop without one of both pairs is left out.
    """
    same = person_ids[:, None] == person_ids
    positive = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
    if camera_ids is not None:
        across = positive & (camera_ids[:, None] != camera_ids)
        positive = torch.where(across.any(dim=1, keepdim=True), across, positive)
    unit = F.normalize(at_least_float32(features.detach()), dim=1)
    alike = (unit @ unit.T).masked_fill(same, -torch.inf)
    anything = torch.rand_like(alike)
    negative = torch.where(torch.rand_like(alike[:, :1]) < 0.5, alike, anything).masked_fill(same, -torch.inf).argmax(1)
    matching = anything.masked_fill(~positive, -torch.inf).argmax(1)
    anchors = (positive.any(dim=1) & ~same.all(dim=1)).nonzero().flatten()
    second = torch.cat([matching[anchors], negative[anchors]])
    labels = torch.cat([torch.ones_like(anchors), torch.zeros_like(anchors)])
    return anchors.repeat(2), second, labels.float()


def pair_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Returns the binary cross-entropy of pair scores (N,) and labels (N,): a scalar, zero with a graph if N is 0."""
    if not len(scores):
        return scores.sum()
    scores = at_least_float32(scores)
    return F.binary_cross_entropy_with_logits(scores, labels.to(scores))
