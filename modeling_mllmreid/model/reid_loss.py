"""The ReID loss of a step: every head's ID and triplet losses on the features of all processes."""

import torch
from torch import Tensor, nn

from .configuration_mllmreid import MllmReIDConfig
from .distributed import gather_with_gradient
from .losses import batch_hard_triplet_loss, id_loss


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
