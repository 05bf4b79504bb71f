"""Guards that end a training early: values that are not finite, SIGTERM, out of memory, a dead loader process."""

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

# Number of images that a message names.
NAMED_FILES = 8


class Preempted(UserError):
    """SIGTERM arrived. The checkpoint is written, and the same command continues from it."""

    exit_code = 128 + signal.SIGTERM


class StepGuard(TrainerCallback):
    """Checks before every optimiser step whether a loss or gradient is not finite, and whether SIGTERM arrived.

    A step that is not finite is skipped: the guard drops its gradients and restores the running statistics of the
    heads. After more than `max_skipped_steps` in a row it raises UserError with the files of the last step. Under
    DeepSpeed, which has taken the step already, it raises after the first. With float16 it checks losses alone, as the
    gradient scaler skips infinite gradients by itself. A step costs one small reduction over processes and one device
    synchronisation.

    Args:
        trainer (`Trainer`): The Trainer, with `step_files`.
        args (`ReIDTrainingArguments`): Its arguments.
    """

    def __init__(self, trainer: Trainer, args: ReIDTrainingArguments):
        self.trainer, self.args = trainer, args
        self.preempted = False
        self._terminate = False
        self._not_finite: Tensor | None = None
        self._grad_norm: Tensor | float | None = None
        self._skipped_in_a_row = 0
        self._saved_buffers: list[tuple[Tensor, Tensor]] = []
        self.skipped = False

    def begin_step(self, model: nn.Module) -> None:
        """Saves the running statistics before the first micro-batch. model: the unwrapped model."""
        self._not_finite, self._grad_norm, self.skipped = None, None, False
        self._saved_buffers = [(buffer, buffer.clone()) for buffer in model.reid_head.buffers()]  # type: ignore[union-attr]

    def check_loss(self, loss: Tensor) -> Tensor:
        """Records the loss of a micro-batch; returns it, or zero for the log if it is not finite."""
        finite = torch.isfinite(loss)
        self._not_finite = ~finite if self._not_finite is None else self._not_finite | ~finite
        return torch.where(finite, loss, torch.zeros_like(loss))

    def check_grad_norm(self, norm: Tensor | float | None) -> None:
        """Records the norm of all gradients after their reduction over processes."""
        self._grad_norm = norm

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Skips the step or ends the training if a loss or gradient is not finite."""
        accelerator = self.trainer.accelerator
        flags = torch.zeros(2, device=accelerator.device)
        if self._not_finite is not None:
            flags[0] = self._not_finite
        norm = self._grad_norm
        if norm is not None and accelerator.scaler is None:
            # FSDP2 returns a sharded tensor, DeepSpeed a number.
            norm = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)
            flags[0] = torch.maximum(flags[0], (~torch.isfinite(norm)).to(flags))
        flags[1] = self._terminate
        not_finite, terminate = accelerator.reduce(flags, reduction="sum").tolist()
        self.preempted = terminate > 0
        self.skipped = not_finite > 0
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if self.skipped else 0
        if not self.skipped:
            return
        if self.trainer.is_deepspeed_enabled or self._skipped_in_a_row > self.args.max_skipped_steps:
            raise UserError(self._not_finite_message(state.global_step + 1))
        logger.warning("step %d: loss or gradient not finite; the step is skipped", state.global_step + 1)
        self.trainer.model.zero_grad(set_to_none=True)  # type: ignore[union-attr]
        with torch.no_grad():
            for buffer, saved in self._saved_buffers:
                buffer.copy_(saved)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After SIGTERM, saves a checkpoint and ends the training."""
        if self.preempted:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After SIGTERM, does not save or evaluate again."""
        if self.preempted:
            control.should_save = control.should_evaluate = False

    def _not_finite_message(self, step: int) -> str:
        """Returns the error message of a step that is not finite."""
        files = self.trainer.step_files(step)  # type: ignore[attr-defined]
        more = f" and {len(files) - NAMED_FILES} more" if len(files) > NAMED_FILES else ""
        precision = "bf16 in place of fp16, " if self.args.fp16 else ""
        repeated = f"{self._skipped_in_a_row} steps in a row (max_skipped_steps {self.args.max_skipped_steps})"
        if self.trainer.is_deepspeed_enabled:
            repeated = "and DeepSpeed has taken the step, so only earlier checkpoints are usable"
        return (
            f"step {step}: loss or gradient not finite, {repeated}; images: {', '.join(files[:NAMED_FILES])}{more}: "
            f"check {precision}learning_rate ({self.args.learning_rate:g}), "
            f"max_grad_norm ({self.args.max_grad_norm:g}) "
            "and these files"
        )

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block, SIGTERM ends the training with a checkpoint after the current step."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def request_end(number: int, frame: Any) -> None:
            self._terminate = True

        previous = signal.signal(signal.SIGTERM, request_end)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)


def explain_error(error: Exception, args: ReIDTrainingArguments, images: str) -> UserError | None:
    """Turns an exception of a training that the user can fix into a UserError.

    Args:
        error (`Exception`): The exception.
        args (`ReIDTrainingArguments`): Arguments of the training.
        images (`str`): Size and number of tokens of the images, in words.

    Returns:
        `UserError`: One line, or None for any other exception.
    """
    text = str(error)
    if isinstance(error, UserError):
        # A data loading process wraps its exception in a traceback.
        wrapped = "Original Traceback" in text
        return UserError(text.strip().splitlines()[-1].partition("UserError: ")[2]) if wrapped else None
    if re.search(r"DataLoader worker \(pid", text):
        return UserError(
            f"a data loading process died ({text.splitlines()[0]}): the system killed it, perhaps for memory: "
            f"lower dataloader_num_workers ({args.dataloader_num_workers}), or provide more (shared) memory"
        )
    if "is not compatible with gradient checkpointing" in text:
        return UserError(
            "activation_checkpointing: no layer of this encoder, such as a convolutional net, can be computed again in "
            "the backward pass: set it to false, and grad_cache_chunk to a few images for less memory"
        )
    if args.torch_compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        reason = " ".join(text.split())[:300]
        return UserError(
            f"torch_compile: the backend {args.torch_compile_backend} failed ({reason}): install a C++ compiler if it "
            "is missing, or leave torch_compile out"
        )
    if not should_reduce_batch_size(error):
        return None
    # Batches of pairs have no P.
    size, find = ("pairs_per_batch", "") if args.pairs_per_batch else ("identities_per_batch", "auto_find_batch_size")
    return UserError(
        f"out of memory with {args.batch_in_words} images of {images} "
        f"({_memory_state()}): set grad_cache_chunk ({args.grad_cache_chunk or 'off'}) to a few images, "
        f"activation_checkpointing ({str(args.activation_checkpointing).lower()}) to true, lower {size} or "
        f"max_target_tokens{find and f', or set {find}'}; train --dry_run prints the memory of each setting"
    )


def _memory_state() -> str:
    """Returns the used and free memory, in words."""
    if not torch.cuda.is_available():
        return "CPU memory"
    free, total = torch.cuda.mem_get_info()
    peak = torch.cuda.max_memory_allocated()
    return f"{peak / 2**30:.1f} GiB used at most, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
