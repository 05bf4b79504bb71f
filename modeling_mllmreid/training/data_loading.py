"""Loading of batches: the sampler's epoch, loading processes that stay, and copies that do not wait."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback

from ..data.pairs import PairSampler
from ..data.sampler import PKSampler
from .arguments import ReIDTrainingArguments


class SamplerEpoch(TrainerCallback):
    """Sets the sampler's epoch, as the loader does not after a resume in the middle of an epoch.

    An epoch without a step left after a resume ends without another evaluation and checkpoint.

    Args:
        sampler (`Callable`): Returns the sampler of the training; None before there is one.
    """

    def __init__(self, sampler: Callable[[], PKSampler | PairSampler | None]):
        self.sampler = sampler

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Sets the epoch, and draws what new loading processes would draw."""
        draw_as_new_workers(train_dataloader)
        if (sampler := self.sampler()) is not None:
            sampler.set_epoch(int(state.epoch or 0))
        self._first_step = state.global_step

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Logs, evaluates and saves nothing after an epoch without a step."""
        if state.global_step == self._first_step:
            control.should_log = control.should_evaluate = control.should_save = False


def copy_while_computing(accelerator: Accelerator, args: ReIDTrainingArguments) -> bool:
    """Copies batches to a GPU without waiting for it, where they are in pinned memory.

    Not a field of the arguments, as checkpoints compare those.

    Args:
        accelerator (`Accelerator`): Of a trainer whose loaders are not made yet.
        args (`ReIDTrainingArguments`): Device and `dataloader_pin_memory`.

    Returns:
        `bool`: Whether the time until a batch is there is that of loading it. A copy from other memory waits for the
        earlier work of the GPU.
    """
    pinned = bool(args.dataloader_pin_memory) and args.device.type == "cuda"
    accelerator.dataloader_config.non_blocking = pinned
    return pinned or args.device.type == "cpu"


def draw_as_new_workers(loader: Any) -> None:
    """Draws the random number that new processes would draw at the start of an epoch, if those of the loader stay.

    So the random numbers of a training depend neither on the loading processes nor on a resume.

    Args:
        loader (`torch.utils.data.DataLoader`): The loader of the training, as accelerate wraps it.
    """
    if getattr(loader, "_iterator", None) is not None:
        torch.empty((), dtype=torch.int64).random_()


def end_workers(loader: Any) -> None:
    """Ends the processes that stay, which otherwise live as long as the trainer.

    Args:
        loader (`torch.utils.data.DataLoader`): The loader of the training, as accelerate wraps it, or None.
    """
    if (base := getattr(loader, "base_dataloader", None)) is not None:
        # The iterator ends its processes when it is deleted.
        base._iterator = None
