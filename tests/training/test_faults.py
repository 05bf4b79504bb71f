"""Trainings that are killed, stopped, or out of disk: the same command continues to the same bits."""

import os
import re
import shutil
import signal

import pytest
import torch
from children import exit_code_of_child
from datasets import DatasetDict
from dying_training import MOMENTS, die_at, fill_the_disk, without_hub

from modeling_mllmreid.training.guards import Preempted, StepGuard
from modeling_mllmreid.training.resume import last_checkpoint
from modeling_mllmreid.utils import outputs
from modeling_mllmreid.utils.errors import UserError

# Two evaluations, three checkpoints (two are kept), and dropout, whose random numbers must continue too.
RUN = {
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "logging_steps": 2,
    "gradient_accumulation_steps": 2,
    "adapters": {"language_model": "lora", "lora_rank": 4, "lora_dropout": 0.3},
}


@pytest.fixture(scope="module")
def whole():
    """The folder that caches the result of the uninterrupted run."""
    return {}


def result(trained) -> tuple[list[dict], dict[str, torch.Tensor]]:
    times = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")
    history = [{k: v for k, v in entry.items() if k not in times} for entry in trained.trainer.state.log_history]
    return history, {name: tensor.clone() for name, tensor in trained.trainer.model.state_dict().items()}


def assert_same(got, expected) -> None:
    assert got[0] == expected[0]
    assert got[1].keys() == expected[1].keys()
    for name, tensor in expected[1].items():
        assert torch.equal(got[1][name], tensor), name


# Similar cases always run.
SLOW = ("before it is renamed", "while older ones are removed")


@pytest.mark.parametrize("moment", [pytest.param(m, marks=pytest.mark.slow if m in SLOW else ()) for m in MOMENTS])
def test_a_killed_run_continues_to_the_same_bits(train, whole, people, monkeypatch, tmp_path, moment):
    *_, last = MOMENTS[moment]
    pushed = {"push_to_hub": True, "hub_model_id": "someone/model"} if moment == "while it is pushed" else {}
    without_hub(monkeypatch.setattr)
    if not whole:
        whole["result"] = result(train("whole", **RUN))
    assert exit_code_of_child(die_at, moment, people, tmp_path, {**RUN, **pushed}) == -signal.SIGKILL
    assert last_checkpoint(tmp_path / "run") == (None if last is None else tmp_path / f"run/checkpoint-{last}")
    again = train(**RUN, **pushed)
    assert_same(result(again), whole["result"])
    folder = again.trainer.args.output_dir
    assert sorted(name for name in os.listdir(folder) if name.startswith(("checkpoint-", "."))) == [
        f"checkpoint-{step}" for step in sorted({6, 8} if again.trainer.state.best_global_step != 3 else {3, 8})
    ]


def test_a_finished_run_takes_no_step_more_and_another_run_is_refused(train, world, capsys):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 2}
    first = result(train(**settings))
    capsys.readouterr()
    assert_same((first[0], result(train(**settings))[1]), first)
    assert re.search(
        r"continues from \S+checkpoint-2, where a training ended: set resume_from_checkpoint false to train again\n",
        capsys.readouterr().out,
    )
    with pytest.raises(
        UserError, match=r"checkpoint-2: belongs to a run with other settings \(learning_rate 0.001, now 0.01"
    ):
        train(**settings, learning_rate=0.01)
    with pytest.raises(UserError, match=r"other settings \(loss_lambda 0.7, now 0.5\): give another output_dir, or"):
        train(**settings, model={"loss_lambda": 0.5})
    with pytest.raises(UserError, match=r"other settings \(other training images or texts\)"):
        train(**settings, dataset=DatasetDict(train=world["train"].select(range(70))))
    people = world["train"]["person_id"][:]
    fewer = world["train"].select([row for row, person in enumerate(people) if person != people[0]])
    with pytest.raises(UserError, match=r"other settings \(other people\): give another output_dir"):
        train(**settings, dataset=DatasetDict(train=fewer))
    longer = train(**{**settings, "max_steps": 3}, resume_from_checkpoint="true")
    assert longer.trainer.state.global_step == 3
    anew = train(**settings, learning_rate=0.01, resume_from_checkpoint="false")
    assert [entry["step"] for entry in anew.trainer.state.log_history if "loss" in entry] == [1, 2]


def test_sigterm_writes_a_checkpoint_and_the_same_command_continues(train, whole, monkeypatch):
    if not whole:
        whole["result"] = result(train("whole", **RUN))
    before, check_loss, calls = signal.getsignal(signal.SIGTERM), StepGuard.check_loss, []

    def at_the_tenth(guard, loss):
        calls.append(0)
        if len(calls) == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return check_loss(guard, loss)

    monkeypatch.setattr(StepGuard, "check_loss", at_the_tenth)
    with pytest.raises(
        Preempted, match="SIGTERM: stopped after step 5, checkpoint-5 is written: the same command"
    ) as stop:
        train(**RUN)
    assert stop.value.exit_code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert_same(result(train(**RUN)), whole["result"])


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint(train, people, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "adapters": None}
    expected = result(train("whole", **settings))
    shutil.rmtree(tmp_path / "whole")
    assert exit_code_of_child(fill_the_disk, people, tmp_path, settings) == 7
    message = (tmp_path / "message").read_text()
    assert (
        "checkpoint-4: cannot be written" in message
        and "checkpoint-2 is complete, and the same command continues" in message
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-2", "training_log.jsonl"]
    assert_same(result(train("run", **settings)), expected)


def test_two_trainings_in_one_folder_are_refused(train, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "PATIENCE", 0.3)
    with (
        outputs.only_writer(tmp_path / "run", work="training"),
        pytest.raises(UserError, match="another training writes there"),
    ):
        train(max_steps=1)
    assert train(max_steps=1).trainer.state.global_step == 1
