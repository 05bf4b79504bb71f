"""Failure signatures while training: gradients at the visual encoder, spread of the features, and what is written.

`Diagnostics` measures them in a training step without changing it by a bit, for the log, and warns where one trips.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, Trainer

from ..model import MllmReIDConfig, MllmReIDModel, MllmReIDProcessor
from ..model.losses import batch_hard_triplet_loss, id_loss
from ..model.tensors import gather_with_gradient
from ..text.generation import ready_to_generate, special_tokens
from .arguments import ReIDTrainingArguments
from .parameters import tower_up_to

logger = logging.getLogger(__name__)


# A loss of a hundredth of the others' gradient turns the step by arctan 0.01, half a degree: it is as good as off.
MIN_GRADIENT_SHARE = 0.01
# The features of P people that are told apart need about P - 1 directions. A tenth of them is far from any healthy
# run, and 1.5 is hardly more than one line, for small batches.
MIN_RANK_SHARE, MIN_RANK = 0.1, 1.5
# Centred features that know nothing of identities have a difference of 0, give or take 0.03 in a batch of 16 x 4.
MIN_COSINE_GAP = 0.05
# In nats a token: the image branch's perplexity is e times that of the text branch.
MAX_BRANCH_GAP = 1.0
# One text for six images of eight is 15 of 28 pairs.
MAX_SAME_TEXT = 0.5
# Before a tenth of the steps, and in the warm-up, every model looks untrained.
MIN_PROGRESS = 0.1

GENERATED_IMAGES, GENERATED_TOKENS = 8, 16


# ---- measures --------------------------------------------------------------------------------------------------------


def effective_rank(rows: Tensor) -> float:
    """exp of the entropy of the normalised singular values: 1 on one line, n for n orthogonal rows of equal length.

    rows: (N, D). 0 where all rows are zero.
    Source: Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality".
    """
    values = torch.linalg.svdvals(rows.float())
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def identity_cosines(rows: Tensor, person_ids: Tensor) -> tuple[float | None, float | None]:
    """Mean cosine over pairs of rows (within, between) identities; None where there is no such pair.

    rows: (N, D), normalised; person_ids: (N,).
    """
    cosines = rows @ rows.T
    same = person_ids[:, None] == person_ids[None, :]
    pairs = torch.ones_like(same).triu(1)
    within, between = (cosines[pairs & mask] for mask in (same, ~same))
    return (float(within.mean()) if len(within) else None, float(between.mean()) if len(between) else None)


def embedding_spread(features: Tensor, person_ids: Tensor) -> dict[str, float]:
    """`within`, `between` and `rank` of a batch's features, centred by the batch's mean and then normalised.

    features: (N, D), un-normalised; person_ids: (N,). Centred, as an LLM's features lie in a narrow cone where the
    cosine of any two people is near 1, and that is no fault. Empty where a feature is not finite.
    """
    rows = features.detach().float()
    if not torch.isfinite(rows).all():
        return {}
    rows = F.normalize(rows - rows.mean(dim=0), dim=-1)
    within, between = identity_cosines(rows, person_ids)
    values = {"within": within, "between": between, "rank": effective_rank(rows)}
    return {name: value for name, value in values.items() if value is not None}


def equal_pairs(rows: Tensor) -> tuple[int, int]:
    """(pairs of equal rows, all pairs). rows: (N, T)."""
    pairs = list(combinations(rows.tolist(), 2))
    return sum(one == other for one, other in pairs), len(pairs)


def reid_parts(config: MllmReIDConfig, outputs: Any, person_ids: Tensor) -> dict[str, Tensor]:
    """`id_<head>` and `triplet_<head>`, scalars, as they enter the total loss; those of weight 0 are left out.

    outputs: a training step's `MllmReIDOutput`; person_ids: (B,). Made of the step's own logits and features: another
    pass through the heads would move the batch norm's statistics. The triplet of the captions is not among them.
    """
    parts = {}
    share = config.loss_lambda / len(config.reid_heads)
    person_ids = gather_with_gradient(person_ids)
    for name in config.reid_heads:
        if config.id_weight:
            logits, row_ids = outputs.id_logits[name], person_ids
            if name == "llm" and outputs.captioned is not None:
                # The captions' rows follow those of the images.
                row_ids = torch.cat([person_ids, person_ids[gather_with_gradient(outputs.captioned)]])
            loss = id_loss(logits, row_ids, config.label_smoothing)
            parts[f"id_{name}"] = share * config.id_weight * loss
        if config.triplet_weight:
            loss = batch_hard_triplet_loss(
                gather_with_gradient(outputs.features[name]),
                person_ids,
                margin=config.triplet_margin,
                soft_margin=config.triplet_soft_margin,
            )
            parts[f"triplet_{name}"] = share * config.triplet_weight * loss
    return parts


def gradients_at(state: Tensor, parts: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """The gradient of each part at a tensor of its graph, in float32; zeros where none arrives. The graph stays.

    state: any shape; parts: scalars. scale: what the parts are multiplied by for float16, undone in the result.
    """
    gradients = {}
    for name, part in parts.items():
        gradient = None
        if state.requires_grad and part.requires_grad:
            (gradient,) = torch.autograd.grad(part * scale, state, retain_graph=True, allow_unused=True)
        gradients[name] = torch.zeros_like(state, dtype=torch.float32) if gradient is None else gradient.float() / scale
    return gradients


@torch.no_grad()
def written_and_wanted(
    model: MllmReIDModel, processor: MllmReIDProcessor, inputs: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor] | None:
    """What the model writes greedily after images of different people, and their targets: ids, each (N, T).

    inputs: a training batch. The first image of each person that has a target, 8 at most, all after the first one's
    prompt, so that only the image can make a difference. T: 16, or the shortest target. None with fewer than two.
    """
    labels, people = inputs["labels"], inputs["person_ids"].tolist()
    first: dict[int, int] = {}
    for row, has_target in enumerate((labels != -100).any(dim=1).tolist()):
        if has_target:
            first.setdefault(people[row], row)
    chosen = list(first.values())[:GENERATED_IMAGES]
    if len(chosen) < 2:
        return None
    targets = [labels[row][labels[row] != -100] for row in chosen]
    length = min(GENERATED_TOKENS, *map(len, targets))
    prompt = inputs["input_ids"][chosen[0]][: int((labels[chosen[0]] != -100).nonzero()[0])]
    prompts = prompt.repeat(len(chosen), 1)
    tokenizer = processor.tokenizer
    unnamed = range(len(tokenizer), model.config.get_text_config().vocab_size)
    # No end-of-text: targets have none, and every row is to have its full length.
    settings = GenerationConfig(
        max_new_tokens=length,
        do_sample=False,
        suppress_tokens=[*sorted(special_tokens(model.mllm, tokenizer)), *unnamed],
        pad_token_id=tokenizer.pad_token_id,
    )
    with ready_to_generate(model.mllm):
        written = model.generate(
            prompts,
            inputs["pixel_values"][chosen],
            attention_mask=torch.ones_like(prompts),
            generation_config=settings,
        )
    return written, torch.stack([target[:length] for target in targets])


# ---- findings --------------------------------------------------------------------------------------------------------


def findings(
    values: Mapping[str, float], config: MllmReIDConfig, args: ReIDTrainingArguments, *, images: int, people: int
) -> dict[str, str]:
    """What is wrong, by kind, in words that name the settings to look at; empty for a healthy step.

    values: of one step, as logged but without "diag_". images, people: in the step's batch, over all processes.
    """
    found = {}
    language, reid = values.get("grad_lm_image"), values.get("grad_reid")
    if language == 0:
        found["no language gradient"] = (
            "no gradient of the language loss reaches the visual encoder, although the encoder is trained: look at "
            "activation_checkpointing_kwargs (use_reentrant cuts it) and fp16 (bf16 loses no small gradients)"
        )
    elif language is not None and reid is not None and language < MIN_GRADIENT_SHARE * reid:
        found["language gradient"] = (
            f"the language loss's gradient at the visual encoder is {language / reid:.2%} of the ReID losses': "
            f"lower loss_lambda ({config.loss_lambda:g})"
        )
    for name in config.reid_heads if config.loss_lambda > 0 else ():
        rank, within, between = (values.get(f"{key}_{name}") for key in ("rank", "within", "between"))
        look = f"look at learning_rate ({args.learning_rate:g}) and triplet_margin ({config.triplet_margin:g})"
        if rank is not None and people > 2 and rank < max(MIN_RANK, MIN_RANK_SHARE * (people - 1)):
            found[f"rank {name}"] = f"features {name!r} collapse: effective rank {rank:.1f} of {images} images: {look}"
        if within is not None and between is not None and within - between < MIN_COSINE_GAP:
            found[f"cosines {name}"] = (
                f"features {name!r} do not tell people apart: mean cosine {within:.2f} within "
                f"identities, {between:.2f} between them: {look}"
            )
    gap = values.get("branch_gap")
    if gap is not None and gap > MAX_BRANCH_GAP:
        found["branch gap"] = (
            f"the image branch is {gap:.1f} nats a token behind the text branch: lower loss_lambda "
            f"({config.loss_lambda:g}), raise distillation_weight ({config.distillation_weight:g}), or give captions "
            "that tell what can be seen"
        )
    written, wanted = values.get("same_text_share"), values.get("same_target_share")
    if written is not None and wanted is not None and written - wanted > MAX_SAME_TEXT:
        found["same text"] = (
            f"the language model writes the same text for {written:.0%} of the pairs of people, whose targets are "
            f"equal for {wanted:.0%}: look at target, at learning_rates of the projector and the visual encoder, and "
            f"at loss_lambda ({config.loss_lambda:g})"
        )
    return found


class Diagnostics:
    """What a trainer measures every `diagnostics_steps` steps, on the step's first micro-batch, and its warnings.

    Logged, each with `diag_` in front, with `step`, the step that was measured:
    `grad_lm_image` (with distillation), `grad_id_<head>`, `grad_triplet_<head>`, `grad_reid`: L2 norm over the batch of
    each part's gradient, as it enters the total loss, at the visual encoder's earliest hidden state that is read: all
    losses pass through it. Absent where the encoder is not trained.
    `within_<feature>`, `between_<feature>`, `rank_<feature>`: see `embedding_spread`.
    `branch_gap`: nats a token that the image branch is behind the text branch.
    `same_text_share`, `same_target_share`: pairs of people with equal texts, written and wanted.

    Warned of is what two measured steps in a row show, once in a run: one batch has few pairs, and some are unlucky.

    DeepSpeed and FSDP shard what a second backward or a generation would need: there only spread and gap are measured.
    Gradients are absent too with torch.compile, with re-entrant checkpoints, which allow no `autograd.grad`, and with
    cached gradients, which never have the whole batch's graph.
    """

    def __init__(self, trainer: Trainer, args: ReIDTrainingArguments, processor: MllmReIDProcessor):
        self.trainer, self.args, self.processor = trainer, args, processor
        self._due = False
        self._measured: list[dict[str, float]] = []
        self._found: set[str] = set()
        self._warned: set[str] = set()

    def begin_step(self) -> None:
        """To be called before the first micro-batch of each optimiser step."""
        every, step = self.args.diagnostics_steps, self._step
        self._due = every > 0 and (step == 1 or step % every == 0)

    @property
    def _step(self) -> int:
        return self.trainer.state.global_step + 1

    @property
    def _sharded(self) -> bool:
        return self.trainer.is_deepspeed_enabled or self.trainer.is_fsdp_enabled

    @contextmanager
    def watch(self, inputs: Mapping[str, Tensor]) -> Iterator[dict[str, Any] | None]:
        """Around the forward pass of a micro-batch. Yields what `measure` needs, or None where nothing is due."""
        if not self._due:
            yield None
            return
        self._due = False
        trainer = self.trainer
        model: Any = trainer.model
        seen: dict[str, Any] = {"model": model}
        # Before the forward pass, while its activations take no memory yet.
        if not self._sharded and "labels" in inputs and model.config.loss_lambda < 1:
            with trainer.accelerator.autocast():
                seen["texts"] = written_and_wanted(model, self.processor, inputs)
        tower = model.mllm.model.vision_tower
        layers = model.config.mllm_config.vision_feature_layer
        read = [model.vision_layer, *([layers] if isinstance(layers, int) else layers)]

        def keep(module: Any, args: Any, output: Any) -> None:
            states = output.hidden_states
            depth = min(range(len(states))[layer] for layer in read)
            if any(p.requires_grad for p in tower_up_to(tower, [depth])):
                seen["state"] = states[depth]

        if self._sharded or self.args.torch_compile or self.args.grad_cache_chunk:
            yield seen
            return
        hook = tower.register_forward_hook(keep)
        try:
            yield seen
        finally:
            hook.remove()

    def measure(
        self, seen: Mapping[str, Any], inputs: Mapping[str, Tensor], outputs: Any, language: Tensor | None
    ) -> None:
        """Measures one micro-batch, and warns.

        seen: of `watch`; outputs: of the forward pass; language: the language loss as the step has it, before
        `1 - lambda`.
        """
        config = seen["model"].config
        person_ids = gather_with_gradient(inputs["person_ids"])
        values: dict[str, float] = {}
        if "state" in seen:
            values |= self._gradient_norms(seen["state"], inputs, outputs, language, config)
        for name, feature in outputs.features.items():
            spread = embedding_spread(gather_with_gradient(feature.detach()), person_ids)
            values |= {f"{key}_{name}": value for key, value in spread.items()}
        values |= self._language_values(outputs, seen)
        digits = {f"diag_{name}": float(f"{value:.6g}") for name, value in values.items()}
        self._measured.append({"diag_step": self._step, **digits})

        args, state = self.args, self.trainer.state
        if self._step > max(1, args.get_warmup_steps(state.max_steps), MIN_PROGRESS * state.max_steps):
            people = len(person_ids.unique())
            found = findings(values, config, args, images=len(person_ids), people=people)
            for kind in (self._found & found.keys()) - self._warned:
                self._warned.add(kind)
                if self.trainer.is_world_process_zero():
                    logger.warning("step %d: %s", self._step, found[kind])
            self._found = set(found)

    def take(self) -> list[dict[str, float]]:
        """The measured steps that were not taken yet, for the log."""
        measured, self._measured = self._measured, []
        return measured

    def _sums(self, *numbers: Tensor | float) -> list[float]:
        """Each number's sum over processes."""
        accelerator = self.trainer.accelerator
        row = torch.stack([torch.as_tensor(n, dtype=torch.float32, device=accelerator.device) for n in numbers])
        return accelerator.reduce(row, reduction="sum").tolist()

    def _gradient_norms(
        self, state: Tensor, inputs: Mapping[str, Tensor], outputs: Any, language: Tensor | None, config: MllmReIDConfig
    ) -> dict[str, float]:
        accelerator = self.trainer.accelerator
        args = self.args
        reentrant = dict(args.activation_checkpointing_kwargs or {}).get("use_reentrant")  # type: ignore[arg-type]
        if args.activation_checkpointing and reentrant and state.requires_grad:
            return {}
        parts = {}
        # The micro-batches that have no target are no fault of the language loss.
        if language is not None and self._sums(float(outputs.label_counts["image"]))[0]:
            parts["lm_image"] = (1 - config.loss_lambda) * language
        reid = {}
        if outputs.reid_loss is not None:
            reid = reid_parts(config, outputs, inputs["person_ids"])
            if config.reid_text:
                reid["all"] = config.loss_lambda * outputs.reid_loss
        scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
        gradients = gradients_at(state, parts | reid, scale)
        if config.reid_text and reid:
            total = gradients.pop("all")
            own = [gradients[name] for name in reid if name != "all"]
            gradients["triplet_text"] = total - torch.stack(own).sum(dim=0)
            gradients["reid"] = total
        elif reid:
            gradients["reid"] = torch.stack([gradients[name] for name in reid]).sum(dim=0)
        if not gradients:
            return {}
        # Each process has its own images; their losses carry the factor that DDP's averaging takes out again.
        squares = self._sums(*(gradient.square().sum() for gradient in gradients.values()))
        return {
            f"grad_{name}": square**0.5 / accelerator.num_processes
            for name, square in zip(gradients, squares, strict=True)
        }

    def _language_values(self, outputs: Any, seen: Mapping[str, Any]) -> dict[str, float]:
        values = {}
        sums, counts = outputs.language_loss_sums or {}, outputs.label_counts or {}
        if {"image", "text"} <= sums.keys():
            image, text, images, texts = self._sums(
                sums["image"].detach(), sums["text"].detach(), counts["image"], counts["text"]
            )
            if images and texts:
                values["branch_gap"] = image / images - text / texts
        if "texts" in seen:
            written, wanted = map(equal_pairs, seen["texts"]) if seen["texts"] is not None else ((0, 0), (0, 0))
            same, same_targets, pairs = self._sums(written[0], wanted[0], written[1])
            if pairs:
                values |= {"same_text_share": same / pairs, "same_target_share": same_targets / pairs}
        return values
