"""Signs of a failing training: `Diagnostics` measures a step for the log and warns, without changing the step by a bit.

The measures are in `diagnostic_measures`, the warnings' limits and texts in `diagnostic_failures`.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from ..model import MllmReIDConfig, MllmReIDProcessor
from ..model.tensors import gather_with_gradient
from .arguments import ReIDTrainingArguments
from .diagnostic_failures import find_failures
from .diagnostic_measures import (
    count_equal_pairs,
    embedding_spread,
    generated_and_targets,
    loss_gradients,
    weighted_reid_losses,
)
from .modules import tower_parameters

logger = logging.getLogger(__name__)

# Before a tenth of the steps, and in the warm-up, every model looks untrained.
MIN_PROGRESS = 0.1


@dataclass
class Captured:
    """What is kept of a micro-batch's forward pass, each None where it is not measured.

    hidden_state: the visual encoder's earliest one that a loss reads. texts: generated and target ids, each (N, T).
    """

    hidden_state: Tensor | None = None
    texts: tuple[Tensor, Tensor] | None = None


class Diagnostics:
    """Measures the first micro-batch of every `diagnostics_steps`-th step, and warns.

    Logged, each with `diag_` in front, with `step`, the step that was measured:
    `grad_lm_image` (with distillation), `grad_id_<head>`, `grad_triplet_<head>`, `grad_reid`: L2 norm over the batch of
    each loss's gradient, as it enters the total loss, at the visual encoder's earliest hidden state that is read: all
    losses pass through it. Absent where the encoder is not trained.
    `within_<feature>`, `between_<feature>`, `rank_<feature>`: see `embedding_spread`.
    `branch_gap`: nats a token that the image branch is behind the text branch.
    `same_text_share`, `same_target_share`: share of the pairs of people with equal texts, generated and target.

    A warning needs two measured steps in a row, and comes once in a run: one batch has few pairs, and some are unlucky.

    DeepSpeed and FSDP shard what a second backward pass or a generation needs: there only spread and gap are measured.
    Gradients are absent too with re-entrant checkpointing, which allows no `autograd.grad`, with cached gradients,
    which never have the whole batch's graph, and with `use_liger_kernel` and `torch_compile`, whose graphs serve for
    one backward pass.
    """

    def __init__(self, trainer: Trainer, args: ReIDTrainingArguments, processor: MllmReIDProcessor):
        self.trainer, self.args, self.processor = trainer, args, processor
        self._due = False
        self._entries: list[dict[str, float]] = []
        # Kinds of warnings: of the last measured step, and given before.
        self._failing: set[str] = set()
        self._warned: set[str] = set()

    @property
    def _step(self) -> int:
        return self.trainer.state.global_step + 1

    def on_step_begin(self) -> None:
        """Decides whether the step is measured. To be called before its first micro-batch."""
        every = self.args.diagnostics_steps
        self._due = every > 0 and (self._step == 1 or self._step % every == 0)

    @contextmanager
    def capture(self, inputs: Mapping[str, Tensor]) -> Iterator[Captured | None]:
        """Around the forward pass of a micro-batch. Yields what `measure` needs, None where it is not measured."""
        if not self._due:
            yield None
            return
        self._due = False
        captured, trainer = Captured(), self.trainer
        model: Any = trainer.model
        sharded = trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled
        # Before the forward pass, while its activations take no memory yet.
        if not sharded and "labels" in inputs and model.config.loss_lambda < 1:
            with trainer.accelerator.autocast():
                captured.texts = generated_and_targets(model, self.processor, inputs)
        if sharded or self.args.grad_cache_chunk or self.args.use_liger_kernel or self.args.torch_compile:
            yield captured
            return
        checkpointing = dict(self.args.activation_checkpointing_kwargs or {})  # type: ignore[arg-type]
        reentrant = self.args.activation_checkpointing and checkpointing.get("use_reentrant")
        trained = any(p.requires_grad for _, p in tower_parameters(model))

        def keep(module: Any, args: Any, output: Any) -> None:
            # The earliest state that is read; the final output comes after all of them.
            layers = [layer for layer in model.read_layers if layer is not None]
            depths = [range(len(output.hidden_states))[layer] for layer in layers]
            state = output.hidden_states[min(depths)] if depths else output.last_hidden_state
            if trained and not (reentrant and state.requires_grad):
                captured.hidden_state = state

        hook = model.tower.register_forward_hook(keep)
        try:
            yield captured
        finally:
            hook.remove()

    def measure(
        self, captured: Captured, inputs: Mapping[str, Tensor], outputs: Any, language_loss: Tensor | None
    ) -> None:
        """Measures one micro-batch for the log, and warns.

        captured: of `capture`; outputs: of the forward pass; language_loss: as the step has it, before `1 - lambda`.
        """
        model: Any = self.trainer.model
        config: MllmReIDConfig = model.config
        person_ids = gather_with_gradient(inputs["person_ids"])
        values: dict[str, float] = {}
        if captured.hidden_state is not None:
            values |= self._gradient_norms(captured.hidden_state, inputs["person_ids"], outputs, language_loss, config)
        for name, feature in outputs.features.items():
            spread = embedding_spread(gather_with_gradient(feature.detach()), person_ids)
            values |= {f"{key}_{name}": value for key, value in spread.items()}
        values |= self._branch_gap(outputs) | self._same_texts(captured)
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        digits = {f"diag_{name}": float(f"{value:.6g}") for name, value in finite.items()}
        self._entries.append({"diag_step": self._step, **digits})

        steps = self.trainer.state.max_steps
        if self._step > max(1, self.args.get_warmup_steps(steps), MIN_PROGRESS * steps):
            people = len(person_ids.unique())
            self._warn(find_failures(values, config, self.args, images=len(person_ids), people=people))

    def pop_entries(self) -> list[dict[str, float]]:
        """The log entries since the last call."""
        entries, self._entries = self._entries, []
        return entries

    def to_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, for JSON."""
        return {"entries": self._entries, "failing": sorted(self._failing), "warned": sorted(self._warned)}

    def load(self, saved: Mapping[str, Any]) -> None:
        """Restores the state of `to_dict`."""
        self._entries = list(saved["entries"])
        self._failing, self._warned = set(saved["failing"]), set(saved["warned"])

    def _warn(self, found: Mapping[str, str]) -> None:
        new = [kind for kind in found if kind in self._failing and kind not in self._warned]
        if self.trainer.is_world_process_zero():
            for kind in new:
                logger.warning("step %d: %s", self._step, found[kind])
        self._failing, self._warned = set(found), self._warned.union(new)

    def _sum_over_processes(self, *numbers: Tensor | float) -> list[float]:
        accelerator = self.trainer.accelerator
        stacked = torch.stack([torch.as_tensor(n, dtype=torch.float32, device=accelerator.device) for n in numbers])
        total: Tensor = accelerator.reduce(stacked, reduction="sum")
        return total.tolist()

    def _gradient_norms(
        self, state: Tensor, person_ids: Tensor, outputs: Any, language_loss: Tensor | None, config: MllmReIDConfig
    ) -> dict[str, float]:
        accelerator = self.trainer.accelerator
        losses = {}
        # A micro-batch without any target is no failure of the language loss.
        if language_loss is not None and self._sum_over_processes(float(outputs.label_counts["image"]))[0]:
            losses["lm_image"] = (1 - config.loss_lambda) * language_loss
        heads = {} if outputs.reid_loss is None else weighted_reid_losses(config, outputs, person_ids)
        losses |= heads
        if heads and config.reid_text:
            losses["reid"] = config.loss_lambda * outputs.reid_loss
        scale = 1.0 if accelerator.scaler is None else accelerator.scaler.get_scale()
        gradients = loss_gradients(state, losses, scale)
        if heads:
            total = torch.stack([gradients[name] for name in heads]).sum(dim=0)
            if config.reid_text:
                gradients[f"{config.text_loss}_text"] = gradients["reid"] - total
            else:
                gradients["reid"] = total
        if not gradients:
            return {}
        # Each process has its own images; their losses carry the factor that DDP's averaging takes out again.
        squares = self._sum_over_processes(*(gradient.square().sum() for gradient in gradients.values()))
        norms = (square**0.5 / accelerator.num_processes for square in squares)
        return {f"grad_{name}": norm for name, norm in zip(gradients, norms, strict=True)}

    def _branch_gap(self, outputs: Any) -> dict[str, float]:
        sums, counts = outputs.language_loss_sums or {}, outputs.label_counts or {}
        if not {"image", "text"} <= sums.keys():
            return {}
        image, text, images, texts = self._sum_over_processes(
            sums["image"].detach(), sums["text"].detach(), counts["image"], counts["text"]
        )
        return {"branch_gap": image / images - text / texts} if images and texts else {}

    def _same_texts(self, captured: Captured) -> dict[str, float]:
        if captured.texts is None:
            return {}
        (equal, pairs), (equal_targets, _) = map(count_equal_pairs, captured.texts)
        same, same_targets, every = self._sum_over_processes(equal, equal_targets, pairs)
        return {"same_text_share": same / every, "same_target_share": same_targets / every} if every else {}
