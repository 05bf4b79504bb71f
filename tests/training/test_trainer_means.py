"""Means in a trainer: logs since the last entry, also across a resume, and gradients over processes."""

import json

import pytest
import torch

from modeling_mllmreid.training import grad_cache
from modeling_mllmreid.training.grad_cache import average_gradients


def test_entries_after_a_resume_are_means_over_the_steps_before_it_too(train, tmp_path):
    # 48 images in micro-batches of 8, two in a step: three steps in an epoch. Logs at 5, resumes within the window.
    settings = {"max_steps": 5, "logging_steps": 5, "save_strategy": "steps", "save_steps": 4}
    settings |= {"gradient_accumulation_steps": 2, "model": {"reid_text": True}, "diagnostics_steps": 0}
    whole = train("whole", **settings).trainer.state.log_history
    resumed = train("resumed", resume_from_checkpoint=str(tmp_path / "whole/checkpoint-4"), **settings)
    again = resumed.trainer.state.log_history
    entry = {"step", "epoch", "loss", "grad_norm", "learning_rate", "contrastive_text", "id_llm", "lm_text", "lm_image"}
    assert entry <= again[0].keys() and again[0] == whole[0]
    assert len(again) == len(whole) == 2 and again[1]["total_flos"] == 0
    window = json.loads((tmp_path / "whole/checkpoint-4/log_window_0.json").read_text())
    assert window["step"] == 0 and window["parts"]["counts"]["id_llm"] == 8


def test_the_logged_losses_are_means_over_the_steps_since_the_last_log(train):
    settings = {"max_steps": 4, "gradient_accumulation_steps": 2, "diagnostics_steps": 0, "model": {"loss_lambda": 0.3}}
    single = train("single", logging_steps=1, **settings).trainer.state.log_history[:4]
    double = train("double", logging_steps=2, **settings).trainer.state.log_history[:2]
    for pair, entry in zip((single[:2], single[2:]), double, strict=True):
        for name in ("loss", "id_llm", "triplet_vision", "lm_image", "lm_text"):
            assert entry[name] == pytest.approx((pair[0][name] + pair[1][name]) / 2, abs=1.1e-4), name
    for entry in single:
        reid = sum(entry[f"{part}_{head}"] for part in ("id", "triplet") for head in ("llm", "vision")) / 2
        # Unequal target counts of micro-batches hardly change the language loss.
        language = (entry["lm_image"] + entry["lm_text"]) / 2
        assert entry["loss"] == pytest.approx(0.7 * language + 0.3 * reid, rel=2e-2)


def test_the_mean_of_gradients_over_processes(monkeypatch):
    """Simulates two processes, each without a gradient that the other has."""
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

    monkeypatch.setattr(grad_cache.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(grad_cache.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(grad_cache.dist, "all_reduce", all_reduce)
    average_gradients(model)
    got = {name: None if p.grad is None else p.grad.tolist() for name, p in model.items()}
    assert got == {"both": [2, 3], "theirs": [4, 1], "ours": [3, 0], "frozen": None}
