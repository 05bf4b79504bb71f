"""Controls of an ablation: corrupted texts, and the attribute baseline.

The attribute baseline learns the attribute words of the captions without a language model. Its gain is the gain that
the content of the captions alone gives.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from ...model import MllmReIDModel
from ...synthetic.people.captions import ATTRIBUTE_WORDS, attribute_words
from ...training.batches import TrainCollator


def permute_captions(split: Dataset, seed: int) -> Dataset:
    """Gives the images of each person the texts of one other person: consistent within a person, but wrong.

    People are mapped in one cycle of a random order, so that no person keeps their own texts. If the other person has
    fewer images, their texts repeat. Raises ValueError for fewer than two people.
    """
    people = np.asarray(split["person_id"][:])
    distinct = np.unique(people)
    if len(distinct) < 2:
        raise ValueError("captions of one person cannot be permuted over people")
    order = np.random.default_rng(seed).permutation(distinct)
    other = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    images_by_person = {person: np.flatnonzero(people == person) for person in distinct.tolist()}
    source = np.arange(len(people))
    for person, images in images_by_person.items():
        source[images] = np.resize(images_by_person[other[person]], len(images))
    return _texts_from(split, source)


def corrupt_captions(split: Dataset, share: float, seed: int) -> Dataset:
    """Gives a random `share` of the images the texts of a random image of another person."""
    rng = np.random.default_rng(seed)
    people = np.asarray(split["person_id"][:])
    source = np.arange(len(people))
    for image in rng.permutation(len(people))[: round(share * len(people))]:
        source[image] = rng.choice(np.flatnonzero(people != people[image]))
    return _texts_from(split, source)


def _texts_from(split: Dataset, source: np.ndarray) -> Dataset:
    """The split, in which image i has the captions and continuations of image source[i]."""
    columns = ("caption", "continuation", "continuation_ids", "continuation_tokenizer")
    for column in (name for name in columns if name in split.column_names):
        values, feature = split[column][:], split.features[column]
        moved = [values[image] for image in source]
        split = split.remove_columns(column).add_column(column, moved, feature=feature)
    return split


WORDS = sorted(ATTRIBUTE_WORDS)


def attribute_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Computes the binary cross-entropy in nats per present attribute word, like the language loss per token.

    Args:
        logits (`Tensor`): (B, number of words).
        targets (`Tensor`): (B, number of words), 1 where the caption has the word, else 0.

    Returns:
        `Tensor`: A scalar: the sum over all words, divided by the number of present words (at least 1).
    """
    total = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="sum")
    return total / targets.sum().clamp(min=1)


def add_attribute_head(model: MllmReIDModel, weight: float) -> None:
    """Adds a linear head for attribute words on the vision feature, whose weighted loss is added to `reid_loss`.

    The forward method of the model then also accepts `attributes`: (B, number of words), 1 where the caption has the
    word.
    """
    head = nn.Linear(model.config.vision_config.hidden_size, len(WORDS)).to(model.device)
    model.add_module("attribute_head", head)
    current: list[Tensor] = []

    def take_attributes(
        _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        current[:] = [inputs.pop("attributes")] if "attributes" in inputs else []
        return args, inputs

    def add_loss(_: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any], output: Any) -> Any:
        if current and output.reid_loss is not None:
            loss = attribute_loss(head(output.features["vision"]), current[0])
            output.loss_parts["attributes"] = loss.detach()
            output.reid_loss = output.reid_loss + weight * loss
        return output

    model.register_forward_pre_hook(take_attributes, with_kwargs=True)
    model.register_forward_hook(add_loss, with_kwargs=True)


class AttributeCollator(TrainCollator):
    """Batches with the attribute words of the captions."""

    needs_captions = True

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        batch = super().__call__(samples)
        words_of_captions = [attribute_words(sample["caption"]) for sample in samples]
        batch["attributes"] = torch.tensor([[float(word in words) for word in WORDS] for words in words_of_captions])
        return batch
