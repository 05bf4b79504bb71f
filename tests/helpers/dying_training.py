"""Training runs for `exit_code_of_child` that are killed at a chosen moment, or run out of disk."""

import os
import resource
import signal
from pathlib import Path

from tiny_training import train_tiny, world_of

from modeling_mllmreid.training import checkpointing, trainer
from modeling_mllmreid.training.checkpointing import PublishingTrainer
from modeling_mllmreid.training.guards import StepGuard
from modeling_mllmreid.training.trainer import ReIDTrainer
from modeling_mllmreid.utils.errors import UserError

# What is called for the nth time, and the last whole checkpoint then.
MOMENTS = {
    "before any checkpoint": (StepGuard, "check_loss", 3, None),
    "in a step": (StepGuard, "check_loss", 10, 3),
    "in an evaluation": (trainer, "evaluate_model", 2, 3),
    "while a checkpoint is written": (ReIDTrainer, "_save_optimizer_and_scheduler", 2, 3),
    "before it is renamed": (checkpointing, "_move_into_place", 2, 3),
    "while older ones are removed": (checkpointing, "rotate_checkpoints", 2, 6),
    "while it is pushed": (PublishingTrainer, "_publish", 2, 6),
    "while the model is written": (checkpointing, "_move_into_place", 6, 8),
}


def without_hub(patch) -> None:
    """Pushes go nowhere. patch: as `setattr`."""
    patch(ReIDTrainer, "init_hf_repo", lambda *_, **__: None)
    patch(PublishingTrainer, "_publish", lambda *_: "")


def die_at(moment: str, people: Path, folder: Path, settings: dict) -> None:
    """A training that SIGKILL ends at the moment."""
    without_hub(setattr)
    owner, name, call, _ = MOMENTS[moment]
    method, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(0)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return method(*args, **kwargs)

    setattr(owner, name, counted)
    train_tiny(folder, world_of(people), **settings)


def fill_the_disk(people: Path, folder: Path, settings: dict) -> None:
    """Trains without space for large files at step 4; writes the UserError into "message" and exits with 7."""
    save = ReIDTrainer._save_checkpoint

    def small(of, *args):
        if of.state.global_step == 4:
            # The limit would hold for the file into which pytest captures the output too.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        return save(of, *args)

    ReIDTrainer._save_checkpoint = small
    try:
        train_tiny(folder, world_of(people), **settings)
    except UserError as error:
        (folder / "message").write_text(str(error))
        os._exit(7)
