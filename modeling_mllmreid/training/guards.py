"""What ends a training early, and how: numbers that are not finite, SIGTERM, memory that runs out, a dead loader."""

import logging
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from ..utils.errors import UserError
from .arguments import ReIDTrainingArguments

logger = logging.getLogger(__name__)


NAMED_FILES = 8


class Preempted(UserError):
    """SIGTERM came; the checkpoint is written, and the same command goes on from it."""

    exit_code = 128 + signal.SIGTERM


class StepGuard(TrainerCallback):
    """Looks at every optimiser step before it is taken, with one small reduction over processes and one look from the
    host: is a loss or a gradient not finite, has SIGTERM come.

    A step that is not finite is not taken: its gradients are dropped, and the heads' running statistics are put back.
    After more than `max_skipped_steps` in a row a UserError names the files of the last one; under DeepSpeed, which has
    taken the step already, after the first. A gradient scaler skips infinite gradients by itself, so that with float16
    only losses are looked at.
    """

    def __init__(self, trainer: Trainer, args: ReIDTrainingArguments):
        self.trainer, self.args = trainer, args
        self.preempted = False
        self._terminate = False
        self._bad: Tensor | None = None
        self._grad_norm: Tensor | float | None = None
        self._in_a_row = 0
        self._kept: list[tuple[Tensor, Tensor]] = []
        self.skipped = False

    def begin_step(self, model: nn.Module) -> None:
        """Before the first micro-batch. model: not wrapped, with a `reid_head`."""
        self._bad, self._grad_norm, self.skipped = None, None, False
        self._kept = [(buffer, buffer.clone()) for buffer in model.reid_head.buffers()]  # type: ignore[union-attr]

    def check_loss(self, loss: Tensor) -> Tensor:
        """Notes a micro-batch's loss; returns it, or zero for the log where it is not finite."""
        finite = torch.isfinite(loss)
        self._bad = ~finite if self._bad is None else self._bad | ~finite
        return torch.where(finite, loss, torch.zeros_like(loss))

    def check_grad_norm(self, norm: Tensor | float | None) -> None:
        """Notes the norm of all gradients, after the processes' reduction."""
        self._grad_norm = norm

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Skips the step, or ends the training."""
        accelerator = self.trainer.accelerator
        flags = torch.zeros(2, device=accelerator.device)
        if self._bad is not None:
            flags[0] = self._bad
        norm = self._grad_norm
        if norm is not None and accelerator.scaler is None:
            # FSDP2's is spread over the processes, DeepSpeed's a number.
            norm = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)
            flags[0] = torch.maximum(flags[0], (~torch.isfinite(norm)).to(flags))
        flags[1] = self._terminate
        bad, terminate = accelerator.reduce(flags, reduction="sum").tolist()
        self.preempted = terminate > 0
        self.skipped = bad > 0
        self._in_a_row = self._in_a_row + 1 if self.skipped else 0
        if not self.skipped:
            return
        if self.trainer.is_deepspeed_enabled or self._in_a_row > self.args.max_skipped_steps:
            raise UserError(self._not_finite(state.global_step + 1))
        logger.warning("step %d: loss or gradient not finite; the step is not taken", state.global_step + 1)
        self.trainer.model.zero_grad(set_to_none=True)  # type: ignore[union-attr]
        with torch.no_grad():
            for buffer, before in self._kept:
                buffer.copy_(before)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After SIGTERM: a checkpoint, and the end."""
        if self.preempted:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint is written already."""
        if self.preempted:
            control.should_save = control.should_evaluate = False

    def _not_finite(self, step: int) -> str:
        files = self.trainer.files_of_step(step)  # type: ignore[attr-defined]
        more = f" and {len(files) - NAMED_FILES} more" if len(files) > NAMED_FILES else ""
        look = "bf16 in place of fp16, " if self.args.fp16 else ""
        often = f"{self._in_a_row} steps in a row (max_skipped_steps {self.args.max_skipped_steps})"
        if self.trainer.is_deepspeed_enabled:
            often = "and DeepSpeed has taken the step, so that only checkpoints before it are left"
        return (
            f"step {step}: loss or gradient not finite, {often}; its images: {', '.join(files[:NAMED_FILES])}{more}: "
            f"look at {look}learning_rate ({self.args.learning_rate:g}), max_grad_norm ({self.args.max_grad_norm:g}) "
            "and these files"
        )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block SIGTERM asks for a checkpoint and the end, at the end of the current step."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number: int, frame: Any) -> None:
            self._terminate = True

        before = signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)


def explain_error(error: Exception, args: ReIDTrainingArguments, images: str) -> UserError | None:
    """What the user can mend, in one line, of an exception from a training; None for any other.

    images: their size and tokens, in words.
    """
    text = str(error)
    if isinstance(error, UserError):
        # A loader process wraps what it raised in its traceback.
        wrapped = "Original Traceback" in text
        return UserError(text.strip().splitlines()[-1].partition("UserError: ")[2]) if wrapped else None
    if re.search(r"DataLoader worker \(pid", text):
        return UserError(
            f"a data loading process died ({text.splitlines()[0]}): it was killed, perhaps for memory: lower "
            f"dataloader_num_workers ({args.dataloader_num_workers}), or give it more (shared) memory"
        )
    if not should_reduce_batch_size(error):
        return None
    return UserError(
        f"out of memory with {args.identities_per_batch} x {args.images_per_identity} images of {images} "
        f"({_memory()}): set grad_cache_chunk ({args.grad_cache_chunk or 'off'}) to a few images, "
        f"activation_checkpointing ({str(args.activation_checkpointing).lower()}) to true, lower identities_per_batch "
        "or max_target_tokens, or let auto_find_batch_size choose; train --dry_run tells what is needed"
    )


def _memory() -> str:
    if not torch.cuda.is_available():
        return "of the processor's memory"
    free, every = torch.cuda.mem_get_info()
    peak = torch.cuda.max_memory_allocated()
    return f"{peak / 2**30:.1f} GiB used at most, {free / 2**30:.1f} of {every / 2**30:.1f} GiB free"
