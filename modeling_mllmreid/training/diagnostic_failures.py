"""Failures of a training, found in the measures of one step: limits, and warnings with the settings to look at."""

from collections.abc import Mapping

from ..model import MllmReIDConfig
from .arguments import ReIDTrainingArguments

# A loss with a hundredth of the others' gradient turns the step by arctan 0.01, half a degree: it is as good as off.
MIN_GRADIENT_SHARE = 0.01
# Features that separate P people need about P - 1 directions. A tenth of them is far from any healthy run, and 1.5 is
# hardly more than one line, for small batches.
MIN_RANK_SHARE, MIN_RANK = 0.1, 1.5
# Centred features without any identity in them have a difference of 0, give or take 0.03 in a batch of 16 x 4.
MIN_COSINE_GAP = 0.05
# In nats a token: the image branch's perplexity is e times that of the text branch.
MAX_BRANCH_GAP = 1.0
# One text for six images of eight is 15 of 28 pairs.
MAX_SAME_TEXT = 0.5


def find_failures(
    values: Mapping[str, float], config: MllmReIDConfig, args: ReIDTrainingArguments, *, images: int, people: int
) -> dict[str, str]:
    """Warnings by kind, with the settings to look at; empty for a healthy step.

    values: of one step, as logged but without "diag_". images, people: in the step's batch, over all processes.
    """
    return _gradients(values, config) | _embeddings(values, config, args, images, people) | _texts(values, config)


def _gradients(values: Mapping[str, float], config: MllmReIDConfig) -> dict[str, str]:
    language, reid = values.get("grad_lm_image"), values.get("grad_reid")
    if language == 0:
        return {
            "no language gradient": "no gradient of the language loss reaches the visual encoder, although the encoder "
            "is trained: look at activation_checkpointing_kwargs (use_reentrant cuts it) and fp16 (bf16 loses no small "
            "gradients)"
        }
    if language is not None and reid is not None and language < MIN_GRADIENT_SHARE * reid:
        return {
            "language gradient": f"the language loss's gradient at the visual encoder is {language / reid:.2%} of the "
            f"ReID losses': lower loss_lambda ({config.loss_lambda:g})"
        }
    return {}


def _embeddings(
    values: Mapping[str, float], config: MllmReIDConfig, args: ReIDTrainingArguments, images: int, people: int
) -> dict[str, str]:
    found = {}
    look = f"look at learning_rate ({args.learning_rate:g}) and triplet_margin ({config.triplet_margin:g})"
    for name in config.reid_heads if config.loss_lambda > 0 else ():
        rank, within, between = (values.get(f"{key}_{name}") for key in ("rank", "within", "between"))
        if rank is not None and people > 2 and rank < max(MIN_RANK, MIN_RANK_SHARE * (people - 1)):
            found[f"rank {name}"] = f"features {name!r} collapse: effective rank {rank:.1f} of {images} images: {look}"
        if within is not None and between is not None and within - between < MIN_COSINE_GAP:
            found[f"cosines {name}"] = (
                f"features {name!r} do not separate people: mean cosine {within:.2f} within identities, {between:.2f} "
                f"between them: {look}"
            )
    return found


def _texts(values: Mapping[str, float], config: MllmReIDConfig) -> dict[str, str]:
    found = {}
    gap = values.get("branch_gap")
    if gap is not None and gap > MAX_BRANCH_GAP:
        found["branch gap"] = (
            f"the image branch is {gap:.1f} nats a token behind the text branch: lower loss_lambda "
            f"({config.loss_lambda:g}), raise distillation_weight ({config.distillation_weight:g}), or give captions "
            "of what can be seen"
        )
    same, same_targets = values.get("same_text_share"), values.get("same_target_share")
    if same is not None and same_targets is not None and same - same_targets > MAX_SAME_TEXT:
        found["same text"] = (
            f"the language model writes the same text for {same:.0%} of the pairs of people, whose targets are equal "
            f"for {same_targets:.0%}: look at target, at learning_rates of the projector and the visual encoder, and "
            f"at loss_lambda ({config.loss_lambda:g})"
        )
    return found
