"""Controls of an ablation: spoilt texts, and the attribute baseline.

What it gains is what the captions' content is worth without any language model.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from ...data.contract import FEATURES
from ...model import MllmReIDModel
from ...synthetic.captions import ATTRIBUTE_WORDS, attribute_words
from ...training.batches import TrainCollator


def permute_captions(split: Dataset, seed: int) -> Dataset:
    """Every person's images with the texts of one other person: still consistent within a person, but of no use.

    People are mapped in one cycle of a random order, so that nobody keeps the own texts; where the other person has
    fewer images they are used again. Raises ValueError for fewer than two people.
    """
    people = np.asarray(split["person_id"][:])
    distinct = np.unique(people)
    if len(distinct) < 2:
        raise ValueError("captions of one person cannot be permuted over people")
    order = np.random.default_rng(seed).permutation(distinct)
    other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    rows_of = {person: np.flatnonzero(people == person) for person in distinct.tolist()}
    source = np.arange(len(people))
    for person, rows in rows_of.items():
        source[rows] = np.resize(rows_of[other[person]], len(rows))
    return _texts_from(split, source)


def corrupt_captions(split: Dataset, share: float, seed: int) -> Dataset:
    """A `share` of the images, drawn at random, with the texts of a random image of another person."""
    rng = np.random.default_rng(seed)
    people = np.asarray(split["person_id"][:])
    source = np.arange(len(people))
    for row in rng.permutation(len(people))[: round(share * len(people))]:
        source[row] = rng.choice(np.flatnonzero(people != people[row]))
    return _texts_from(split, source)


def _texts_from(split: Dataset, source: np.ndarray) -> Dataset:
    """The split with row i's captions and continuations those of row source[i]."""
    for column in ("caption", "continuation"):
        values = split[column][:]
        moved = [values[row] for row in source]
        split = split.remove_columns(column).add_column(column, moved, feature=FEATURES[column])
    return split


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
