"""What a trainer counts, also over a resume: steps of an epoch, evaluations, what was summed up since the last log."""

import json

import pytest
import torch
from transformers import TrainerCallback

from modeling_mllmreid.training import cached_step
from modeling_mllmreid.training.cached_step import average_gradients
from modeling_mllmreid.training.trainer import ReIDTrainer


def test_entries_after_a_resume_are_means_over_the_steps_before_it_too(train, tmp_path):
    # Micro-batches of eight of 48 images, two a step: three steps an epoch. Logged at 5, resumed within the window.
    settings = {"max_steps": 5, "logging_steps": 5, "save_strategy": "steps", "save_steps": 4}
    settings |= {"gradient_accumulation_steps": 2, "model": {"reid_text": True}, "diagnostics_steps": 0}
    whole = train("whole", **settings).trainer.state.log_history
    resumed = train("resumed", resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"), **settings)
    again = resumed.trainer.state.log_history
    entry = {"step", "epoch", "loss", "grad_norm", "learning_rate", "triplet_text", "id_llm", "lm_text", "lm_image"}
    assert entry <= again[0].keys() and again[0] == whole[0]
    assert len(again) == len(whole) == 2 and again[1]["total_flos"] == 0
    window = json.loads((tmp_path / "whole/checkpoint-4/log_window_0.json").read_text())
    assert window["step"] == 0 and window["parts"]["counts"]["id_llm"] == 8


def test_the_logged_loss_and_its_parts_are_means_over_the_steps_since_the_last_log(train):
    settings = {"max_steps": 4, "gradient_accumulation_steps": 2, "diagnostics_steps": 0, "model": {"loss_lambda": 0.3}}
    single = train("single", logging_steps=1, **settings).trainer.state.log_history[:4]
    double = train("double", logging_steps=2, **settings).trainer.state.log_history[:2]
    for pair, entry in zip((single[:2], single[2:]), double, strict=True):
        for name in ("loss", "id_llm", "triplet_vision", "lm_image", "lm_text"):
            assert entry[name] == pytest.approx((pair[0][name] + pair[1][name]) / 2, abs=1.1e-4), name
    for entry in single:
        reid = sum(entry[f"{part}_{head}"] for part in ("id", "triplet") for head in ("llm", "vision")) / 2
        # Unequal target counts of micro-batches hardly move the language loss.
        language = (entry["lm_image"] + entry["lm_text"]) / 2
        assert entry["loss"] == pytest.approx(0.7 * language + 0.3 * reid, rel=2e-2)


def test_a_run_that_is_resumed_at_its_end_evaluates_logs_and_saves_nothing_again(train, tmp_path, monkeypatch):
    # Three steps an epoch: the second epoch ends after its first step, is evaluated and saved.
    settings = {"max_steps": 4, "gradient_accumulation_steps": 2, "eval_strategy": "epoch", "save_strategy": "epoch"}
    settings |= {"load_best_model_at_end": False, "logging_strategy": "epoch", "diagnostics_steps": 0}
    whole = train("run", **settings).trainer.state
    evaluated = [entry["step"] for entry in whole.log_history if "eval_mAP" in entry]
    logged = [entry["step"] for entry in whole.log_history if "loss" in entry]
    assert evaluated == logged == [3, 4]
    file = tmp_path / "run/checkpoint-4/trainer_state.json"
    before = file.stat().st_mtime_ns
    weights = {name: value.clone() for name, value in train("run", **settings).trainer.model.state_dict().items()}
    resumed = train("run", **settings).trainer
    again = resumed.state.log_history
    assert [entry["step"] for entry in again if "eval_mAP" in entry] == evaluated
    assert [entry["step"] for entry in again if "loss" in entry] == logged
    assert resumed.state.global_step == 4 and file.stat().st_mtime_ns == before
    assert all(torch.equal(value, weights[name]) for name, value in resumed.model.state_dict().items())


@pytest.mark.parametrize("accumulated", [4, 5])
def test_steps_of_an_epoch_are_rounded_up_and_their_files_are_those_that_are_read(train, monkeypatch, accumulated):
    """Six micro-batches an epoch: the last step of each has fewer, and they count as what they are."""
    read, epochs = [], []
    get = ReIDTrainer.get_batch_samples

    def watched(self, iterator, number, device):
        samples, count = get(self, iterator, number, device)
        read.append([sum(len(batch["person_ids"]) for batch in samples), samples])
        return samples, count

    class Epochs(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            epochs.append(state.epoch)

    monkeypatch.setattr(ReIDTrainer, "get_batch_samples", watched)
    settings = {"gradient_accumulation_steps": accumulated, "num_train_epochs": 2, "diagnostics_steps": 0}
    trainer = train(**settings).trainer
    assert [images for images, _ in read] == [8 * accumulated, 8 * (6 - accumulated)] * 2
    assert trainer.state.global_step == 4
    labels = dict(zip(trainer.train_dataset.file_names, trainer.train_dataset.labels, strict=True))
    for step, (_, samples) in enumerate(read, start=1):
        people = [label for batch in samples for label in batch["person_ids"].tolist()]
        assert [labels[file] for file in trainer.files_of_step(step)] == people


def test_the_mean_of_gradients_over_processes(monkeypatch):
    """Two processes, of which this one has no gradient where the other has one, and the other way round."""
    model = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.zeros(2)) for name in ("both", "theirs", "ours")})
    model["frozen"] = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
    model["both"].grad, model["ours"].grad = torch.tensor([1.0, 2.0]), torch.tensor([6.0, 0.0])
    average_gradients(model)
    assert model["theirs"].grad is None and model["both"].grad.tolist() == [1, 2]

    theirs = {"both": [3.0, 4.0], "theirs": [8.0, 2.0], "ours": [0.0, 0.0]}

    class Work:
        def __init__(self, gradient, other):
            self.gradient, self.other = gradient, other

        def wait(self):
            self.gradient += self.other / 2

    def all_reduce(gradient, async_op):
        assert async_op
        (name,) = [name for name, parameter in model.items() if parameter.grad is gradient]
        return Work(gradient, torch.tensor(theirs[name]))

    monkeypatch.setattr(cached_step.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(cached_step.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(cached_step.dist, "all_reduce", all_reduce)
    average_gradients(model)
    got = {name: None if p.grad is None else p.grad.tolist() for name, p in model.items()}
    assert got == {"both": [2, 3], "theirs": [4, 1], "ours": [3, 0], "frozen": None}
