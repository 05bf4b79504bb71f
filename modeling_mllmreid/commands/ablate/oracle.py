"""The attribute oracle: the captions' attribute words supervise the vision feature by a plain multi-label head.

What it gains is what the captions' content is worth without any language model.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...data.synthetic.captions import ATTRIBUTE_WORDS, attribute_words
from ...model import MllmReIDModel
from ...training.batches import TrainCollator

WORDS = sorted(ATTRIBUTE_WORDS)


def attribute_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy in nats per attribute word that is there, as the language loss is in nats per token.

    logits, targets: (B, number of words), targets 0 or 1. Returns a scalar; 0 where no row has a word.
    """
    total = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
    return total / targets.sum().clamp(min=1)


def add_attribute_head(model: MllmReIDModel, weight: float) -> None:
    """Gives the model a linear head for attribute words on its vision feature, and their weighted loss to `reid_loss`.

    The model's forward then takes `attributes` too: (B, number of words), 1 where the caption has the word.
    """
    head = nn.Linear(model.config.vision_config.hidden_size, len(WORDS)).to(model.device)
    model.add_module("attribute_head", head)
    taken: list[Tensor] = []

    def take(_: nn.Module, args: tuple, inputs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        taken[:] = [inputs.pop("attributes")] if "attributes" in inputs else []
        return args, inputs

    def add(_: nn.Module, args: tuple, inputs: dict[str, Any], output: Any) -> Any:
        if taken and output.reid_loss is not None:
            loss = attribute_loss(head(output.features["vision"]), taken[0])
            output.loss_parts["attributes"] = loss.detach()
            output.reid_loss = output.reid_loss + weight * loss
        return output

    model.register_forward_pre_hook(take, with_kwargs=True)
    model.register_forward_hook(add, with_kwargs=True)


class AttributeCollator(TrainCollator):
    """Batches with the attribute words of each row's caption."""

    needs_captions = True

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = super().__call__(samples)
        captions = self.processor.tokenizer.batch_decode([sample["caption"] for sample in samples])
        found = [attribute_words(caption) for caption in captions]
        batch["attributes"] = torch.tensor([[float(word in words) for word in WORDS] for words in found])
        return batch
