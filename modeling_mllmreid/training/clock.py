"""The duration of a training over all its runs: every checkpoint holds the seconds up to it."""

import time
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState


class TrainingClock(TrainerCallback, ExportableState):
    """Counts the seconds of a training up to its last step or evaluation, evaluations and checkpoints included.

    A training that continues adds to the seconds of its checkpoint. What a killed run did after its last checkpoint is
    lost, and not counted. A finished training that is started again adds nothing.
    """

    def __init__(self) -> None:
        self.seconds: float | None = 0.0
        # When the last step or evaluation ended; None outside of a training.
        self._last: float | None = None

    def state(self) -> dict[str, Any]:
        """The seconds, as the Trainer writes them to `trainer_state.json`."""
        return {"args": {}, "attributes": {"seconds": self.seconds}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts at 0, or with the seconds of the checkpoint."""
        self.seconds = _stored(state.stateful_callbacks) if state.global_step else 0.0
        # At a checkpoint the Trainer expects an entry, also if it continues from one without it.
        state.stateful_callbacks[type(self).__name__] = self.state()
        self._last = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts the time since the last step or evaluation."""
        now = time.monotonic()
        if self.seconds is not None and self._last is not None:
            self.seconds += now - self._last
        self._last = now

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts an evaluation within the training."""
        if self._last is not None:
            self.on_step_end(args, state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops."""
        self._last = None


def training_seconds(trainer: Trainer) -> float | None:
    """Returns the seconds of a training; None if it continued from a checkpoint that does not have them."""
    # Not a clock that was kept: the Trainer replaces it where it restores the callbacks of a checkpoint.
    return next(found.seconds for found in trainer.callback_handler.callbacks if isinstance(found, TrainingClock))


def _stored(callbacks: dict[str, Any]) -> float | None:
    """Returns the seconds among the states of the callbacks of a checkpoint."""
    entry = callbacks.get(TrainingClock.__name__)
    attributes = entry.get("attributes") if isinstance(entry, dict) else None
    seconds = attributes.get("seconds") if isinstance(attributes, dict) else None
    return float(seconds) if isinstance(seconds, (int, float)) and 0 <= seconds < float("inf") else None
