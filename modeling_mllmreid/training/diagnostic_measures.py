"""Measures of a training step, as functions of its tensors: spread of embeddings, gradients by loss, texts."""

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig

from ..model import MllmReIDConfig, MllmReIDModel, MllmReIDProcessor
from ..model.losses import batch_hard_triplet_loss, comparable_features, id_loss
from ..model.tensors import gather_with_gradient
from ..text.generation import ready_to_generate, special_tokens

GENERATED_IMAGES, GENERATED_TOKENS = 8, 16


# ---- spread of embeddings ----------------------------------------------------------------------------------------


def effective_rank(embeddings: Tensor) -> float:
    """exp of the entropy of the normalised singular values: 1 on one line, n for n orthogonal rows of equal length.

    embeddings: (N, D). 0 where all are zero.
    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    values = torch.linalg.svdvals(embeddings.float())
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def identity_cosines(embeddings: Tensor, person_ids: Tensor) -> tuple[float | None, float | None]:
    """Mean cosine over pairs (within, between) identities; None where there is no such pair.

    embeddings: (N, D), normalised; person_ids: (N,).
    """
    cosines = embeddings @ embeddings.T
    same = person_ids[:, None] == person_ids[None, :]
    pairs = torch.ones_like(same).triu(1)
    within, between = (cosines[pairs & mask] for mask in (same, ~same))
    return (float(within.mean()) if len(within) else None, float(between.mean()) if len(between) else None)


def embedding_spread(features: Tensor, person_ids: Tensor) -> dict[str, float]:
    """`within`, `between` and `rank` of a batch's features, centred by the batch's mean and then normalised.

    features: (N, D), un-normalised; person_ids: (N,). Centred, as an LLM's features lie in a narrow cone where the
    cosine of any two people is near 1, and that is no failure. Empty where a feature is not finite.
    """
    features = features.detach().float()
    if not torch.isfinite(features).all():
        return {}
    embeddings = F.normalize(features - features.mean(dim=0), dim=-1)
    within, between = identity_cosines(embeddings, person_ids)
    values = {"within": within, "between": between, "rank": effective_rank(embeddings)}
    return {name: value for name, value in values.items() if value is not None}


# ---- gradients by loss -------------------------------------------------------------------------------------------


def weighted_reid_losses(config: MllmReIDConfig, outputs: Any, person_ids: Tensor) -> dict[str, Tensor]:
    """`id_<head>` and `triplet_<head>`, scalars, as they enter the total loss; those of weight 0 are left out.

    outputs: a training step's `MllmReIDOutput`; person_ids: (B,). Made of the step's own logits and features: another
    pass through the heads would move the batch norm's statistics. The loss between images and captions is left out.
    """
    losses = {}
    share = config.loss_lambda / len(config.reid_heads)
    person_ids = gather_with_gradient(person_ids)
    for name in config.reid_heads:
        if config.id_weight:
            logits, labels = outputs.id_logits[name], person_ids
            if name == "llm" and outputs.captioned is not None:
                # The captions' logits follow those of the images.
                labels = torch.cat([person_ids, person_ids[gather_with_gradient(outputs.captioned)]])[: len(logits)]
            losses[f"id_{name}"] = share * config.id_weight * id_loss(logits, labels, config.label_smoothing)
        if config.triplet_weight:
            features = gather_with_gradient(outputs.features[name])
            triplet = batch_hard_triplet_loss(
                comparable_features(features, config.triplet_scale),
                person_ids,
                margin=config.triplet_margin,
                soft_margin=config.triplet_soft_margin,
            )
            losses[f"triplet_{name}"] = share * config.triplet_weight * triplet
    return losses


def loss_gradients(state: Tensor, losses: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """The gradient of each loss at a tensor of its graph, in float32; zeros where none arrives. The graph is kept.

    state: any shape; losses: scalars. scale: of float16's gradient scaler, divided out of the result.
    """
    gradients = {}
    for name, loss in losses.items():
        gradient = None
        if state.requires_grad and loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss * scale, state, retain_graph=True, allow_unused=True)
        gradients[name] = torch.zeros_like(state, dtype=torch.float32) if gradient is None else gradient.float() / scale
    return gradients


# ---- texts -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def generated_and_targets(
    model: MllmReIDModel, processor: MllmReIDProcessor, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """What the model generates greedily after images of different people, and their targets: ids, each (N, T).

    inputs: a training batch. N: the first image of each person that has a target, 8 at most; 0 with fewer than two. All
    follow the first one's prompt, so that only the image can make a difference. T: 16, or the shortest target.
    """
    labels = inputs["labels"]
    first: dict[int, int] = {}
    for index in (labels != -100).any(dim=1).nonzero().flatten().tolist():
        first.setdefault(int(inputs["person_ids"][index]), index)
    chosen = list(first.values())[:GENERATED_IMAGES]
    if len(chosen) < 2:
        return labels.new_empty(0, 0), labels.new_empty(0, 0)
    targets = [labels[index][labels[index] != -100] for index in chosen]
    length = min(GENERATED_TOKENS, *map(len, targets))
    prompt = inputs["input_ids"][chosen[0]][: int((labels[chosen[0]] != -100).nonzero()[0])]
    prompts = prompt.repeat(len(chosen), 1)
    tokenizer = processor.tokenizer
    unnamed = range(len(tokenizer), model.config.get_text_config().vocab_size)
    # No end-of-text: targets have none, and every text must have its full length.
    settings = GenerationConfig(
        max_new_tokens=length,
        do_sample=False,
        suppress_tokens=[*sorted(special_tokens(model.mllm, tokenizer)), *unnamed],
        pad_token_id=tokenizer.pad_token_id,
    )
    with ready_to_generate(model.mllm):
        generated = model.generate(
            prompts,
            inputs["pixel_values"][chosen],
            attention_mask=torch.ones_like(prompts),
            generation_config=settings,
        )
    return generated, torch.stack([target[:length] for target in targets])


def count_equal_pairs(texts: Tensor) -> tuple[int, int]:
    """(pairs of equal texts, all pairs). texts: ids, (N, T)."""
    pairs = list(combinations(texts.tolist(), 2))
    return sum(one == other for one, other in pairs), len(pairs)
