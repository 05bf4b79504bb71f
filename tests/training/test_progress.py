"""What a training prints and writes: lines of 120 columns, the best step, and a log that a resumed run continues."""

import io
import json
import re
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

from modeling_mllmreid.commands.train import check_output_dir
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batches import TrainDataset
from modeling_mllmreid.training.data_loading import copy_while_computing
from modeling_mllmreid.training.progress import (
    LOG_FILE,
    TrainingProgress,
    evaluation_line,
    last_line,
    log_line,
    training_line,
)
from modeling_mllmreid.training.trainer import ReIDTrainer
from modeling_mllmreid.utils.errors import UserError

RUN = {
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "logging_steps": 2,
}
LOSSES = {"id_llm": 6.25, "id_vision": 6.5, "lm_image": 2.125, "lm_text": 2.0, "triplet_llm": 0.25}
ENTRY = {"loss": 12.3456, "grad_norm": 1.5, "learning_rate": 3.5e-5, **LOSSES, "epoch": 12.345, "step": 900}


def test_a_training_prints_lines_and_a_resumed_one_continues_the_log(train, capsys, tmp_path):
    folder, file = tmp_path / "run", tmp_path / "run" / LOG_FILE
    trainer = train(**RUN).trainer
    printed, bars = capsys.readouterr()
    assert "{" not in printed and "\r" not in printed
    # Not a terminal. The bars of transformers are switched off on the command line.
    assert not re.findall(r"\r(?!Writing model shards)", bars)
    first, *lines = printed[printed.index("log: ") :].splitlines()
    assert first == f"log: {file}" and len(lines) == 7
    assert re.fullmatch(
        r"step 2/4  epoch 0.33  loss \d\.\d{3}  lr 7.50e-04  [\d.]+ images/s  0:00:\d\d left(  data_wait \d+%)?",
        lines[0],
    )
    assert re.match(r"    id_llm \d\.\d{3}  id_vision \d\.\d{3}  lm_image \d\.\d{3}  lm_text ", lines[1])
    assert re.match(r"step 2/4  epoch 0.33  val mAP \d\d\.\d%  rank1 ", lines[2])
    state = trainer.state
    best = f"best step {state.best_global_step}: mAP {state.best_metric:.1%} on val, checkpoint "
    assert lines[6].startswith("done after step 4/4, 0:00:") and lines[6].endswith(
        best + f"{folder}/checkpoint-{state.best_global_step}"
    )

    before = file.read_text().splitlines()
    whole = [json.loads(line) for line in file.read_text().splitlines()]
    assert whole == state.log_history and {"loss", "eval_mAP", "diag_step", "train_loss"} <= {
        k for e in whole for k in e
    }
    trainer.evaluate()
    assert len(file.read_text().splitlines()) == len(whole)
    train(**RUN, resume_from_checkpoint=str(folder / "checkpoint-2"))
    after = file.read_text().splitlines()
    assert after[:-1] == before[:-1] and json.loads(after[-1]).keys() == whole[-1].keys()


def test_losses_are_on_one_line_where_they_fit_and_never_wider_than_120_columns():
    line = training_line({**ENTRY, **dict.fromkeys(LOSSES, 0)}, 1500, images_per_second=123.45, seconds_left=4000)
    assert line.splitlines()[0] == (
        "step  900/1500  epoch 12.35  loss 12.346  lr 3.50e-05  123.5 images/s  1:06:40 left"
    )
    few = {name: value for name, value in ENTRY.items() if name not in LOSSES or name == "id_llm"}
    (line,) = training_line(few, 1500, images_per_second=9, seconds_left=0).splitlines()
    assert line.endswith("9.0 images/s  0:00:00 left  id_llm 6.250")
    many = training_line(
        {**ENTRY, **{f"a_loss_of_{n}": n for n in range(20)}}, 10**6, images_per_second=1, seconds_left=1
    )
    assert len(many.splitlines()) > 3 and max(map(len, many.splitlines())) <= 120
    assert re.findall(r"a_loss_of_(\d+) \d+\.000", many) == [str(n) for n in range(20)]


def test_metrics_are_in_percent():
    features = {f"eval_{name}_mAP": value for name, value in {"llm": 0.4, "vision": 0.456}.items()}
    entry = {
        "eval_mAP": 0.456,
        "eval_rank1": 0.6,
        "eval_rank5": 0.7,
        "eval_mINP": 0.1,
        **features,
        "epoch": 1,
        "step": 5,
    }
    assert evaluation_line(entry, 20) == (
        "step  5/20  epoch 1.00  val mAP 45.6%  rank1 60.0%  mINP 10.0%  llm_mAP 40.0%  vision_mAP 45.6%"
    )
    wide = evaluation_line({**dict.fromkeys(entry, 1.0), "step": 10**6, "eval_concat_mAP": 1.0}, 10**6).splitlines()
    assert len(wide) == 2 and max(map(len, wide)) <= 120
    state = TrainerState(global_step=6, max_steps=8, best_metric=0.75, best_global_step=4)
    text = "stopped after step 6/8, 0:01:40; "
    assert last_line(state, "rank1", seconds=100) == text + "best step 4: rank1 75.0% on val, checkpoint not saved"
    state.best_model_checkpoint = "runs/a/checkpoint-4"
    assert last_line(state, "eval_rank1", seconds=100).endswith("rank1 75.0% on val, checkpoint runs/a/checkpoint-4")
    state.best_global_step = None
    assert last_line(state, "rank1", seconds=100) == text + "best rank1 75.0% on val, no checkpoint saved"
    for nothing in (None, float("-inf")):
        state.best_metric = nothing
        assert last_line(state, "mAP", seconds=100) == text + "no evaluation chose a best step"


class Terminal(io.StringIO):
    """A standard error that is a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "disable", "shown"), [(Terminal, False, True), (Terminal, True, False), (io.StringIO, False, False)]
)
def test_a_bar_is_shown_on_a_terminal_only(tmp_path, monkeypatch, stream, disable, shown):
    args = ReIDTrainingArguments(output_dir=str(tmp_path), use_cpu=True, disable_tqdm=disable)
    state, control, progress = TrainerState(max_steps=2), TrainerControl(), TrainingProgress(args)
    monkeypatch.setattr(sys, "stderr", stream())
    progress.on_train_begin(args, state, control)
    state.global_step = 1
    progress.on_step_end(args, state, control)
    progress.close()
    assert ("1/2" in sys.stderr.getvalue()) == shown and bool(sys.stderr.getvalue()) == shown


def test_time_of_evaluations_and_checkpoints_is_not_time_of_steps(tmp_path, monkeypatch, capsys):
    args = ReIDTrainingArguments(str(tmp_path), use_cpu=True, gradient_accumulation_steps=2)
    state, control, progress = TrainerState(max_steps=4), TrainerControl(), TrainingProgress(args)
    clock = iter([0, 10, 500, 510, 1000, 1010, 1020])
    monkeypatch.setattr("modeling_mllmreid.training.progress.time.monotonic", lambda: next(clock))
    progress.on_train_begin(args, state, control)
    # Three steps of 10 seconds and 128 images; a checkpoint until 500, an evaluation until 1000.
    for step, after in enumerate((progress.on_save, progress.on_evaluate, None), start=1):
        state.global_step = step
        progress.on_step_end(args, state, control)
        if after:
            after(args, state, control)
    state.log_history.append({**ENTRY, "step": 3})
    progress.on_log(args, state, control)
    assert "  12.8 images/s  0:05:40 left\n" in capsys.readouterr().out
    progress.close()


@pytest.mark.parametrize(("waited", "shown"), [(4, "left  data_wait 40%\n"), (0.4, "left\n")])
def test_the_line_names_the_share_of_the_time_that_waits_for_data(tmp_path, monkeypatch, capsys, waited, shown):
    args = ReIDTrainingArguments(str(tmp_path), use_cpu=True)
    state, control, progress = TrainerState(max_steps=4), TrainerControl(), TrainingProgress(args)
    now = [0.0]
    monkeypatch.setattr("modeling_mllmreid.training.progress.time.monotonic", lambda: now[0])
    progress.on_train_begin(args, state, control)
    # The second line has only its own steps.
    for step, wait in enumerate((9, waited), start=1):
        with progress.waiting():
            now[0] += wait
        now[0] += 10 - wait
        state.global_step = step
        progress.on_step_end(args, state, control)
        now[0] += 100
        progress.on_evaluate(args, state, control)
        state.log_history.append({"loss": 1.0, "learning_rate": 0.1, "epoch": 1.0, "step": step})
        progress.on_log(args, state, control)
    first, second = re.findall(r"left.*\n", capsys.readouterr().out)
    assert (first, second) == ("left  data_wait 90%\n", shown)
    # Where the time until a batch is there is not that of loading it.
    progress.measures_waits = False
    with progress.waiting():
        now[0] += 9
    progress.on_step_end(args, state, control)
    progress.on_log(args, state, control)
    assert "data_wait" not in capsys.readouterr().out
    progress.close()


def test_copies_are_asynchronous_from_pinned_memory_only():
    for pin, kind, asynchronous, measured in (
        (True, "cuda", True, True),
        (False, "cuda", False, False),
        (False, "cpu", False, True),
        (True, "cpu", False, True),
    ):
        accelerator = SimpleNamespace(dataloader_config=SimpleNamespace(non_blocking=None))
        args = SimpleNamespace(dataloader_pin_memory=pin, device=torch.device(kind))
        assert copy_while_computing(accelerator, args) == measured
        assert accelerator.dataloader_config.non_blocking == asynchronous


def test_a_training_that_waits_for_slow_images_says_so(train, monkeypatch, capsys):
    stock = TrainDataset.__getitem__

    def slow(self, key):
        # Half a second a batch: a step that does not show it takes ten seconds.
        time.sleep(0.06)
        return stock(self, key)

    monkeypatch.setattr(TrainDataset, "__getitem__", slow)
    history = train(max_steps=2, logging_steps=2).trainer.state.log_history
    assert re.search(r"step 2/2 .* data_wait \d+%", capsys.readouterr().out)
    # Not in the log file, which a resumed run repeats to the last bit.
    assert not any("wait" in name for entry in history for name in entry)


def test_an_error_ends_the_bar(train, monkeypatch):
    def fail(self, *args, **kwargs):
        bars.append(self._bar)
        raise UserError("out of paper")

    bars = []
    monkeypatch.setattr(TrainingProgress, "on_step_end", fail)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(UserError, match="out of paper"):
        train(max_steps=2, disable_tqdm=False)
    # A bar that is closed is switched off, and has ended its line.
    assert bars[0].disable and "0/2" in sys.stderr.getvalue() and sys.stderr.getvalue().endswith("\n")


def test_other_processes_print_and_write_nothing(train, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(ReIDTrainer, "is_world_process_zero", lambda self: False)
    assert train(max_steps=1).trainer.state.log_history
    assert "step 1/1" not in capsys.readouterr().out and not (tmp_path / "run" / LOG_FILE).exists()


def test_a_number_that_is_not_finite_is_null():
    assert json.loads(log_line({"grad_norm": float("nan"), "loss": 0.1, "step": 3})) == {
        "grad_norm": None,
        "loss": 0.1,
        "step": 3,
    }


@pytest.mark.parametrize(
    ("content", "ours"),
    [('{"step": 2, "loss": 1}\n{"lo', True), ("", True), ("[1]\n", False), ('{"a": 1}\n', False), ("[" * 10**5, False)],
)
def test_a_file_of_another_program_is_not_replaced(tmp_path, content, ours):
    (tmp_path / LOG_FILE).write_text(content)
    if ours:
        check_output_dir(tmp_path, "model", [])
    else:
        with pytest.raises(UserError, match=f"{LOG_FILE}: exists and was not written by this program"):
            check_output_dir(tmp_path, "model", [])


def test_tensorboard_gets_the_log(train, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    history = train(max_steps=2, report_to="tensorboard").trainer.state.log_history
    (folder,) = (tmp_path / "run/runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    values = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert values == [(e["step"], pytest.approx(e["loss"])) for e in history if "loss" in e]
