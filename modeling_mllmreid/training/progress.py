"""Reports of a training: readable lines on the terminal, and every log entry in a file."""

import json
import math
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from ..utils.errors import UserError
from ..utils.json_files import parse_json, read_file
from ..utils.outputs import AnyPath, atomic_file, refused_by_disk
from .arguments import ReIDTrainingArguments

LOG_FILE = "training_log.jsonl"
WIDTH = 120
# Names of a log entry that are not parts of the loss.
NO_PARTS = frozenset({"loss", "grad_norm", "learning_rate", "epoch", "step"})
# The least share of a step's time that is reported as waiting for data.
LEAST_WAIT = 0.05


class TrainingProgress(TrainerCallback):
    """Prints a line per logging step and evaluation, and writes every log entry to `training_log.jsonl`.

    The file is in `output_dir`, one JSON object per line, the same entries as `log_history` of the trainer's state. A
    resumed training first writes the checkpoint's entries again, so that the file has every step once. On a terminal
    there is a progress bar too. Add it on the main process only.

    Args:
        args (`ReIDTrainingArguments`): Folder of the file, and images of a step.
        measures_waits (`bool`): Whether the time until a batch is there is that of loading it.
    """

    def __init__(self, args: ReIDTrainingArguments, measures_waits: bool = True):
        self._images_per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._file = Path(str(args.output_dir)) / LOG_FILE
        self._bar: Any = None
        self._first_step = 0
        # When the training began and when its last step, evaluation or checkpoint ended.
        self._start = self._last = 0.0
        # Seconds and steps since the last line, without evaluations and checkpoints.
        self._seconds, self._steps = 0.0, 0
        # Of these seconds, those that passed until the next batch was there, where that is the time of loading it.
        self._waited, self.measures_waits = 0.0, measures_waits

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in the context as waiting for data."""
        start = time.monotonic()
        yield
        if self.measures_waits:
            self._waited += time.monotonic() - start

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the file with the entries up to the step that the training continues from."""
        with atomic_file(self._file) as temporary:
            temporary.write_text("".join(map(log_line, state.log_history)), encoding="utf-8")
        print(f"log: {self._file}", flush=True)
        self._first_step = state.global_step
        self._start = self._last = time.monotonic()
        self._seconds, self._steps, self._waited = 0.0, 0, 0.0
        self._bar = tqdm(
            desc="training",
            unit="step",
            total=state.max_steps,
            initial=state.global_step,
            # None: a bar on a terminal only.
            disable=True if args.disable_tqdm else None,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Counts the time of a step."""
        now = time.monotonic()
        self._seconds += now - self._last
        self._steps += 1
        self._last = now
        self._bar.update()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves an evaluation out of the time of steps."""
        self._last = time.monotonic()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leaves a checkpoint out of the time of steps."""
        self._last = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the entry, and prints a line if it has losses or metrics."""
        if self._bar is None:  # an evaluation outside of a training
            return
        entry = state.log_history[-1]
        with refused_by_disk(self._file), self._file.open("a", encoding="utf-8") as file:
            file.write(log_line(entry))
        if "loss" in entry:
            done = state.global_step - self._first_step
            left = (time.monotonic() - self._start) / done * (state.max_steps - state.global_step)
            speed = self._steps * self._images_per_step / self._seconds
            data_wait = self._waited / self._seconds
            self._seconds, self._steps, self._waited = 0.0, 0, 0.0
            self._print(
                training_line(entry, state.max_steps, images_per_second=speed, seconds_left=left, data_wait=data_wait)
            )
        elif "eval_mAP" in entry:
            self._print(evaluation_line(entry, state.max_steps))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Prints the best step, its metric and its checkpoint."""
        self.close()
        self._print(last_line(state, args.metric_for_best_model, seconds=time.monotonic() - self._start))

    def close(self) -> None:
        """Ends the progress bar, also after an error."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _print(self, text: str) -> None:
        with tqdm.external_write_mode():
            print(text, flush=True)


def log_line(entry: Mapping[str, Any]) -> str:
    """Formats a log entry as a line of JSON, step first; a number that is not finite becomes null."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
    # Sorted, because the entries of a checkpoint are sorted by name.
    return json.dumps({"step": entry["step"], **dict(sorted(finite.items()))}) + "\n"


def is_training_log(path: AnyPath) -> bool:
    """Returns whether a file starts like a training log, or is empty."""
    try:
        first, _, _ = read_file(path).partition(b"\n")
        return not first or "step" in parse_json(first, dict[str, Any], where=str(path))
    except UserError:
        return False


def training_line(
    entry: Mapping[str, float],
    max_steps: int,
    *,
    images_per_second: float,
    seconds_left: float,
    data_wait: float = 0.0,
) -> str:
    """Formats a log entry of training in 120 columns; the parts of the loss are on a second line if they do not fit.

    Args:
        entry (`Mapping[str, float]`): The log entry.
        max_steps (`int`): Steps of the whole training.
        images_per_second (`float`): Speed since the last line.
        seconds_left (`float`): Estimated time until the last step.
        data_wait (`float`): Share of the time of the steps that waited for data, 0 to 1; shown from 5 %.

    Returns:
        `str`: The line, without a line feed at its end.
    """
    items = [
        *_position(entry, max_steps),
        f"loss {entry['loss']:.3f}",
        f"lr {entry['learning_rate']:.2e}",
        f"{images_per_second:.1f} images/s",
        f"{_duration(seconds_left)} left",
    ]
    if data_wait >= LEAST_WAIT:
        items.append(f"data_wait {data_wait:.0%}")
    parts = [f"{name} {value:.3f}" for name, value in entry.items() if name not in NO_PARTS]
    line = "  ".join([*items, *parts])
    return line if len(line) <= WIDTH else f"{_wrapped(items)}\n{_wrapped(parts, indent='    ')}"


def evaluation_line(entry: Mapping[str, float], max_steps: int) -> str:
    """Formats a log entry of an evaluation: metrics of the test feature and mAP of every feature, in percent."""
    feature_metrics = [name.removeprefix("eval_") for name in entry if name.endswith("_mAP") and name != "eval_mAP"]
    first, *others = (f"{name} {entry[f'eval_{name}']:.1%}" for name in ("mAP", "rank1", "mINP", *feature_metrics))
    return _wrapped([*_position(entry, max_steps), f"val {first}", *others])


def last_line(state: Any, metric: str | None, *, seconds: float) -> str:
    """Formats the end of a training: its last step, and its best step with the metric in percent and the checkpoint."""
    done = "done" if state.global_step >= state.max_steps else "stopped"
    text = f"{done} after step {state.global_step}/{state.max_steps}, {_duration(seconds)}"
    if state.best_metric is None or not math.isfinite(state.best_metric):
        return f"{text}; no evaluation chose a best step"
    name = str(metric).removeprefix("eval_")
    if state.best_global_step is None:  # the trainer records it with a checkpoint only
        return f"{text}; best {name} {state.best_metric:.1%} on val, no checkpoint saved"
    where = state.best_model_checkpoint or "not saved"
    return f"{text}; best step {state.best_global_step}: {name} {state.best_metric:.1%} on val, checkpoint {where}"


def _position(entry: Mapping[str, float], max_steps: int) -> list[str]:
    return [f"step {entry['step']:>{len(str(max_steps))}}/{max_steps}", f"epoch {entry['epoch']:.2f}"]


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _wrapped(items: list[str], indent: str = "") -> str:
    """Wraps items to lines of 120 columns; no item is broken."""
    whole = "  ".join(item.replace(" ", "\0") for item in items)
    lines = textwrap.wrap(
        whole,
        WIDTH,
        initial_indent=indent,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(lines).replace("\0", " ")
