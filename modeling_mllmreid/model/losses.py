"""The losses of MLLMReID: ID, batch-hard triplet, contrastive, language, distillation, the ReID loss, and their mix."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .tensors import at_least_float32, gather_with_gradient


def id_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """Computes the cross-entropy over identities with label smoothing.

    The target of the right identity is `1 - eps + eps / C`, and `eps / C` for the others.

    Args:
        logits (`torch.Tensor` of shape `(B, C)`):
            ID logits.
        labels (`torch.LongTensor` of shape `(B,)`):
            Identities from 0 to C - 1.
        label_smoothing (`float`, *optional*, defaults to 0.1):
            The eps of label smoothing.

    Returns:
        `torch.Tensor`: a scalar, the mean over the batch.

    Source: Szegedy et al. 2016, section 7; used with the BNNeck by Luo et al. 2019.
    """
    return F.cross_entropy(at_least_float32(logits), labels, label_smoothing=label_smoothing)


def euclidean_distances(a: Tensor, b: Tensor) -> Tensor:
    """Computes the Euclidean distances sqrt(max(d^2, 1e-12)) between two sets of features.

    Both sets are first shifted by a common mean. Distances stay the same, and float32 keeps its digits if all features
    are in a narrow cone far from the origin, as an LLM's are. Autocast is off: in half precision the distance of a
    feature to itself is as large as the margin.

    Args:
        a (`torch.Tensor` of shape `(N, D)`), b (`torch.Tensor` of shape `(M, D)`):
            Features.

    Returns:
        `torch.Tensor` of shape `(N, M)`
    """
    with torch.autocast(a.device.type, enabled=False):
        center = b.detach().mean(dim=0)
        a, b = a - center, b - center
        squared = a.pow(2).sum(1, keepdim=True) + b.pow(2).sum(1) - 2 * a @ b.T
        return squared.clamp(min=1e-12).sqrt()


def comparable_features(features: Tensor, scale: str) -> Tensor:
    """Brings features to the scale on which the triplet loss compares distances with its margin.

    The hidden states of language models differ in size by a factor of 100, so that one margin does not fit them all.

    Args:
        features (`torch.Tensor` of shape `(B, D)`):
            Un-normalised features of a batch.
        scale (`str`):
            "none" keeps them. "batch" divides them by the root mean square distance to the mean of the batch, so that
            the mean distance is near sqrt(2) for every head. "unit" normalises each feature to length 1.

    Returns:
        `torch.Tensor` of shape `(B, D)`: float32 or float64.
    """
    features = at_least_float32(features)
    if scale == "none":
        return features
    if scale == "unit":
        return F.normalize(features, dim=-1)
    # In a narrow cone far from the origin, the distance to the origin would say nothing about the differences.
    # With its gradient: otherwise the loss would fall by shrinking all distances, until no feature is left.
    squared_spread = (features - features.mean(dim=0)).pow(2).sum(dim=1).mean()
    # Equal features have no spread.
    return features / torch.where(squared_spread > 0, squared_spread, 1.0).sqrt()


def batch_hard_triplet_loss(
    anchors: Tensor,
    anchor_labels: Tensor,
    others: Tensor | None = None,
    other_labels: Tensor | None = None,
    *,
    margin: float = 0.3,
    soft_margin: bool = False,
) -> Tensor:
    """Computes the batch-hard triplet loss from each anchor's farthest positive and nearest negative.

    Anchors without a positive or without a negative are left out of the mean. If no anchor is left, the loss is a zero
    with a graph. Identities may have any number of samples.

    Args:
        anchors (`torch.Tensor` of shape `(N, D)`):
            Un-normalised features.
        anchor_labels (`torch.LongTensor` of shape `(N,)`):
            Their identities.
        others (`torch.Tensor` of shape `(M, D)`, *optional*):
            Features of another modality, where positives and negatives come from. Without them, positives and negatives
            come from the anchors, and no anchor is its own positive.
        other_labels (`torch.LongTensor` of shape `(M,)`, *optional*):
            Identities of `others`.
        margin (`float`, *optional*, defaults to 0.3):
            Margin of the hinge `max(0, margin + d_ap - d_an)`.
        soft_margin (`bool`, *optional*, defaults to `False`):
            Whether the loss is `log(1 + exp(d_ap - d_an))` instead.

    Returns:
        `torch.Tensor`: a scalar, the mean over anchors.

    Source: Hermans et al. 2017, equation 5 (hinge) and section 3.2 (soft margin).
    """
    anchors = at_least_float32(anchors)
    own = others is None
    others, other_labels = (anchors, anchor_labels) if own else (at_least_float32(others), other_labels)
    distances = euclidean_distances(anchors, others)
    same = anchor_labels[:, None] == other_labels[None, :]
    positive = same & ~torch.eye(len(anchors), dtype=torch.bool, device=same.device) if own else same
    valid = positive.any(1) & (~same).any(1)
    # No index by a mask and no branch on a value: both make the host wait for the device.
    hardest_positive = distances.masked_fill(~positive, float("-inf")).amax(1)
    hardest_negative = distances.masked_fill(same, float("inf")).amin(1)
    gap = (hardest_positive - hardest_negative).masked_fill(~valid, 0.0)
    losses = F.softplus(gap) if soft_margin else F.relu(gap + margin)
    return losses.masked_fill(~valid, 0.0).sum() / valid.sum().clamp(min=1)


def contrastive_loss(
    anchors: Tensor, anchor_labels: Tensor, others: Tensor, other_labels: Tensor, *, temperature: float = 0.07
) -> Tensor:
    """Computes the cross-entropy of each anchor's cosine similarities to the features of another modality.

    The target is shared equally by all features of the anchor's identity. Anchors without one are left out of the mean.

    Args:
        anchors (`torch.Tensor` of shape `(N, D)`), others (`torch.Tensor` of shape `(M, D)`):
            Features of two modalities.
        anchor_labels (`torch.LongTensor` of shape `(N,)`), other_labels (`torch.LongTensor` of shape `(M,)`):
            Their identities.
        temperature (`float`, *optional*, defaults to 0.07):
            The similarities are divided by it.

    Returns:
        `torch.Tensor`: a scalar, the mean over anchors.

    Source: Yang et al. 2022, "Unified Contrastive Learning in Image-Text-Label Space", one direction.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        anchors, others = (F.normalize(at_least_float32(features), dim=-1) for features in (anchors, others))
        scores = F.log_softmax(anchors @ others.T / temperature, dim=1)
    same = (anchor_labels[:, None] == other_labels[None, :]).to(scores)
    losses = -(same * scores).sum(1) / same.sum(1).clamp(min=1)
    return losses.sum() / same.any(1).sum().clamp(min=1)


def language_loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sums the next-token negative log-likelihood, in nats. logits: (T, V) at label positions only; targets: (T,)."""
    return F.cross_entropy(at_least_float32(logits), targets, reduction="sum")


def distillation_sum(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Sums KL(teacher || student) over target tokens; the teacher gets no gradient.

    Args:
        student_logits, teacher_logits (`torch.Tensor` of shape `(T, V)`):
            Logits of the image branch and of the text branch at the same target tokens.

    Returns:
        `torch.Tensor`: a scalar.

    Raises:
        ValueError: if the branches have different numbers of target tokens, and so different targets.
    """
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"image branch has {len(student_logits)} target tokens, text branch {len(teacher_logits)}: "
            "distillation needs the same target in both"
        )
    student = F.log_softmax(at_least_float32(student_logits), dim=-1)
    teacher = F.log_softmax(at_least_float32(teacher_logits.detach()), dim=-1)
    return F.kl_div(student, teacher, reduction="sum", log_target=True)


def mix_losses(language: Tensor | None, reid: Tensor | None, loss_lambda: float) -> Tensor | None:
    """Returns `(1 - lambda) * language + lambda * reid` (arXiv 2401.13201), or one term if the other is missing."""
    terms = []
    if language is not None:
        terms.append((1 - loss_lambda) * language)
    if reid is not None:
        terms.append(loss_lambda * reid)
    return torch.stack(terms).sum() if terms else None


class Samples(NamedTuple):
    """Un-normalised features (N, D) of images or captions, with their identities (N,)."""

    features: Tensor
    labels: Tensor


def reid_loss(
    config: PreTrainedConfig,
    heads: Mapping[str, Any] | nn.ModuleDict,
    features: dict[str, Tensor],
    text_features: Tensor | None,
    person_ids: Tensor,
    loss_parts: dict[str, Tensor],
    captioned: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes the mean over heads of their weighted ID and triplet losses, over the batches of all processes.

    It is a mean, not a sum, so that the number of heads does not change the balance with the language loss. Captions
    pass the LLM head's classifier too, and add a loss in each direction between images and captions (`text_loss`).

    Args:
        config ([`MllmReIDConfig`] or [`MllmReIDVisionConfig`]):
            Weights and margins of the losses.
        heads (`Mapping[str, ReIDHead]`):
            The [`ReIDHead`] of each feature.
        features (`dict[str, torch.Tensor]`):
            By head, un-normalised features of shape (B, D).
        text_features (`torch.Tensor` of shape `(B, D)`, *optional*):
            Features of the same people's captions.
        person_ids (`torch.LongTensor` of shape `(B,)`):
            Labels of the ID classifier.
        loss_parts (`dict[str, torch.Tensor]`):
            Receives the detached losses by name.
        captioned (`torch.BoolTensor` of shape `(B,)`, *optional*):
            Whether a row of `text_features` has a caption; all do by default. Rows without one enter no loss.

    Returns:
        `tuple[torch.Tensor, dict[str, torch.Tensor]]`: the loss, and the ID logits by head. The LLM head's are those
        of all images, then of all captions.

    Raises:
        ValueError: if the heads have no classifier.

    Source: MLLMReID, arXiv 2401.13201; BNNeck as in Luo et al. 2019.
    """
    losses, id_logits = [], {}
    person_ids = gather_with_gradient(person_ids)
    for name in config.reid_heads:
        images = Samples(gather_with_gradient(features[name]), person_ids)
        captions = None
        if name == "llm" and text_features is not None:
            # Gathered with the rows that have no caption, since their number may differ between processes.
            captions = Samples(gather_with_gradient(text_features), person_ids)
            if captioned is not None:
                present = gather_with_gradient(captioned)
                captions = Samples(captions.features[present], person_ids[present])
        head_losses, id_logits[name] = _head_losses(config, heads[name], name, images, captions)
        loss_parts.update({key: value.detach() for key, value in head_losses.items()})
        losses.append(
            sum(
                (config.id_weight if key.startswith("id_") else config.triplet_weight) * value
                for key, value in head_losses.items()
            )
        )
    return torch.stack(losses).mean(), id_logits


def _head_losses(
    config: PreTrainedConfig, head: Any, name: str, images: Samples, captions: Samples | None
) -> tuple[dict[str, Tensor], Tensor]:
    """Computes a head's losses by name, without their weights, and its ID logits: of the images, then the captions."""
    triplet = {"margin": config.triplet_margin, "soft_margin": config.triplet_soft_margin}
    samples, number = images, len(images.labels)
    if captions is not None and len(captions.labels) >= head.fewest_captions:
        samples = Samples(*(torch.cat(both) for both in zip(images, captions, strict=True)))
    with_captions = len(samples.labels) > number
    after, logits = head(samples.features, captions=len(samples.labels) - number)
    if logits is None:
        raise ValueError("the model has no ID classifier; call set_num_identities before training")
    share_scale = with_captions and config.text_loss == "triplet"
    compared = comparable_features((samples if share_scale else images).features, config.triplet_scale)
    losses = {
        f"id_{name}": id_loss(logits, samples.labels, config.label_smoothing),
        f"triplet_{name}": batch_hard_triplet_loss(compared[:number], images.labels, **triplet),
    }
    if with_captions:
        loss: Any = batch_hard_triplet_loss
        settings: dict[str, Any] = triplet
        if config.text_loss == "contrastive":
            # On the features that a search compares.
            compared = after if config.feature_after_bn else samples.features
            loss, settings = contrastive_loss, {"temperature": config.text_temperature}
        crops = compared[:number], samples.labels[:number]
        texts = compared[number:], samples.labels[number:]
        directions = [loss(*crops, *texts, **settings), loss(*texts, *crops, **settings)]
        losses[f"{config.text_loss}_text"] = torch.stack(directions).mean()
    return losses, logits
