"""The logged means of named losses: over the micro-batches that have the loss, saved and loaded exactly."""

import pytest
import torch
from accelerate import Accelerator

from modeling_mllmreid.training.loss_parts import LossParts


def test_means_are_over_the_micro_batches_that_have_the_loss():
    parts, accelerator = LossParts(torch.device("cpu")), Accelerator(cpu=True)
    for step, counted in (
        ([{"a": 1.0, "b": 3.0}, {"a": 2.0}], True),
        ([{"a": 9.0, "c": 9.0}], False),
        ([{"a": 6.0}], True),
    ):
        for values in step:
            parts.add({name: torch.tensor(value) for name, value in values.items()})
        parts.end_step(counted=counted)
    again = LossParts(torch.device("cpu"))
    again.load(parts.to_dict())
    assert parts.take(accelerator) == again.take(accelerator) == {"a": 3.0, "b": 3.0}
    assert parts.take(accelerator) == {} and parts.to_dict() == {"sums": {}, "counts": {}}


def test_processes_may_have_different_losses(monkeypatch):
    """Gathers and sums like two processes, of which the other has the loss "b" alone."""
    monkeypatch.setattr("modeling_mllmreid.training.loss_parts.gather_object", lambda names: [*names, "b"])
    parts = LossParts(torch.device("cpu"))
    parts.add({"a": torch.tensor(1.0)})
    parts.end_step(counted=True)

    class Two:
        def reduce(self, values, reduction):
            assert reduction == "sum"
            return tuple(value + other for value, other in zip(values, torch.tensor([[0, 8.0], [0, 2]]), strict=True))

    assert parts.take(Two()) == pytest.approx({"a": 1.0, "b": 4.0})


def test_means_have_four_decimals_and_loaded_sums_are_on_the_device():
    parts = LossParts(torch.device("cpu"))
    parts.add({"a": torch.tensor(0.123456)})
    parts.end_step(counted=True)
    saved = parts.to_dict()
    assert parts.take(Accelerator(cpu=True)) == {"a": 0.1235}
    elsewhere = LossParts(torch.device("meta"))
    elsewhere.load(saved)
    assert elsewhere._sums["a"].device.type == "meta"
