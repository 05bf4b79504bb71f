"""The losses of MLLMReID: ID, batch-hard triplet, language and distillation, the ReID loss of a step, and their mix."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_mllmreid import MllmReIDConfig
from .tensors import at_least_float32, gather_with_gradient


def id_loss(logits: Tensor, labels: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """Cross-entropy over identities with label smoothing in the eps/C form.

    logits: (B, C); labels: (B,) in 0..C-1. Returns a scalar, the mean over the batch.
    Source: Szegedy et al. 2016; as used with the BNNeck by Luo et al. 2019.
    """
    return F.cross_entropy(at_least_float32(logits), labels, label_smoothing=label_smoothing)


def euclidean_distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances sqrt(max(d^2, 1e-12)). a: (N, D), b: (M, D). Returns (N, M).

    Both sides are shifted by one common mean first: distances stay, and float32 keeps its digits where all features lie
    in a narrow cone far from the origin, as an LLM's do. Computed in the inputs' own format: autocast would take the
    product in half precision, where a row is a margin away from itself.
    """
    with torch.autocast(a.device.type, enabled=False):
        center = b.detach().mean(dim=0)
        a, b = a - center, b - center
        squared = a.pow(2).sum(1, keepdim=True) + b.pow(2).sum(1) - 2 * a @ b.T
        return squared.clamp(min=1e-12).sqrt()


def batch_hard_triplet_loss(
    anchors: Tensor,
    anchor_labels: Tensor,
    others: Tensor | None = None,
    other_labels: Tensor | None = None,
    *,
    margin: float = 0.3,
    soft_margin: bool = False,
) -> Tensor:
    """Batch-hard triplet loss: each anchor against its farthest positive and its nearest negative.

    anchors: (N, D), un-normalised; anchor_labels: (N,). With `others` (M, D) and `other_labels` (M,), positives and
    negatives come from there (two modalities); without, from the anchors themselves, an anchor never its own positive.
    Identities may have any number of rows; anchors without a positive or a negative are left out of the mean; with none
    left the loss is a zero that keeps its graph.
    Source: Hermans et al. 2017, equation 5 (hinge) and section 3.2 (soft margin).
    """
    anchors = at_least_float32(anchors)
    own = others is None
    others, other_labels = (anchors, anchor_labels) if own else (at_least_float32(others), other_labels)
    distances = euclidean_distances(anchors, others)
    same = anchor_labels[:, None] == other_labels[None, :]
    positive = same & ~torch.eye(len(anchors), dtype=torch.bool, device=same.device) if own else same
    valid = positive.any(1) & (~same).any(1)
    if not valid.any():
        return distances.sum() * 0.0
    hardest_positive = distances.masked_fill(~positive, float("-inf")).amax(1)[valid]
    hardest_negative = distances.masked_fill(same, float("inf")).amin(1)[valid]
    gap = hardest_positive - hardest_negative
    return F.softplus(gap).mean() if soft_margin else F.relu(gap + margin).mean()


def language_loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of the next-token negative log-likelihood. logits: (T, V) at label positions only; targets: (T,)."""
    return F.cross_entropy(at_least_float32(logits), targets, reduction="sum")


def distillation_sum(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Sum over target tokens of KL(teacher || student), the teacher detached. Both (T, V), aligned by target index.

    Raises ValueError where the two branches' targets differ in number: they then do not hold the same text.
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
    """Total loss `(1 - lambda) * language + lambda * reid` (arXiv 2401.13201); a missing part counts nothing."""
    parts = []
    if language is not None:
        parts.append((1 - loss_lambda) * language)
    if reid is not None:
        parts.append(loss_lambda * reid)
    return torch.stack(parts).sum() if parts else None


def reid_loss(
    config: MllmReIDConfig,
    heads: nn.ModuleDict,
    features: dict[str, Tensor],
    text_features: Tensor | None,
    person_ids: Tensor,
    parts: dict[str, Tensor],
    captioned: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """(the mean over heads of their weighted ID and triplet losses, the heads' ID logits).

    features: per head, (B, D) un-normalised; text_features: (B, D) of the same people's captions, or None; person_ids:
    (B,) classifier labels; captioned: (B,) bool, which rows of `text_features` have a caption, all of them by default:
    the others take no part. The detached losses are added to `parts` by name. A mean over heads, not a sum: a sum would
    change the balance with the language loss. Captions go through the LLM head's neck and classifier together with the
    images, with a triplet loss each way between the two (MLLMReID, arXiv 2401.13201; BNNeck as in Luo et al. 2019).
    The logits of the LLM head are those of all images, then of all captions, over all processes.
    Raises ValueError where the heads have no classifier.
    """
    losses, id_logits = [], {}
    triplet = {"margin": config.triplet_margin, "soft_margin": config.triplet_soft_margin}
    person_ids = gather_with_gradient(person_ids)
    for name in config.reid_heads:
        images = gather_with_gradient(features[name])
        rows, row_ids, captions = images, person_ids, None
        if name == "llm" and text_features is not None:
            # Gathered whole, since processes may differ in how many of their images have a caption.
            captions, caption_ids = gather_with_gradient(text_features), person_ids
            if captioned is not None:
                present = gather_with_gradient(captioned)
                captions, caption_ids = captions[present], person_ids[present]
            rows, row_ids = torch.cat([images, captions]), torch.cat([person_ids, caption_ids])
        _, logits = heads[name](rows)
        if logits is None:
            raise ValueError("the model has no ID classifier; call set_num_identities before training")
        own = {
            f"id_{name}": id_loss(logits, row_ids, config.label_smoothing),
            f"triplet_{name}": batch_hard_triplet_loss(images, person_ids, **triplet),
        }
        loss = config.id_weight * own[f"id_{name}"] + config.triplet_weight * own[f"triplet_{name}"]
        if captions is not None and len(captions):
            across = [
                batch_hard_triplet_loss(images, person_ids, captions, caption_ids, **triplet),
                batch_hard_triplet_loss(captions, caption_ids, images, person_ids, **triplet),
            ]
            own["triplet_text"] = torch.stack(across).mean()
            loss = loss + config.triplet_weight * own["triplet_text"]
        parts.update({key: value.detach() for key, value in own.items()})
        id_logits[name] = logits
        losses.append(loss)
    return torch.stack(losses).mean(), id_logits
