"""How often the host waits for the device in a training step: values that it reads, and masks as indices."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from modeling_mllmreid.training.trainer import ReIDTrainer

FUSED = {"aten._fused_adamw_.default": 1, "aten._foreach_norm.Scalar": 1, "aten._foreach_mul_.Tensor": 1}


class Operations(TorchDispatchMode):
    """Counts the operations within it. On a GPU the host waits in each of those that `waits` names."""

    def __init__(self):
        super().__init__()
        self.count, self.waits = Counter(), Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        self.count[name] += 1
        by_mask = name.startswith(("aten.index.", "aten.index_put")) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if by_mask or "local_scalar_dense" in name or "nonzero" in name or "masked_select" in name:
            self.waits["mask as an index" if by_mask else name.split(".")[1]] += 1
        return function(*args, **(kwargs or {}))


class ThirdStep(TrainerCallback):
    """Empties the counts before the third step, and keeps them after it."""

    def __init__(self, operations):
        self.operations, self.kept = operations, None

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            self.operations.count.clear()
            self.operations.waits.clear()
        elif state.global_step == 3:
            self.kept = dict(self.operations.count), dict(self.operations.waits)


@pytest.fixture
def third_step(train, monkeypatch):
    """third_step(**arguments of a training): returns the operations and the waits of its third step."""

    def run(output="run", **arguments):
        operations = Operations()
        callback, plain_train, plain_list = ThirdStep(operations), ReIDTrainer.train, torch.Tensor.tolist

        def watched(trainer, *args, **kwargs):
            trainer.add_callback(callback)
            with operations:
                return plain_train(trainer, *args, **kwargs)

        def to_list(tensor):  # which is no operation on a CPU
            operations.waits["tolist"] += 1
            return plain_list(tensor)

        monkeypatch.setattr(ReIDTrainer, "train", watched)
        monkeypatch.setattr(torch.Tensor, "tolist", to_list)
        settings = {"max_steps": 3, "diagnostics_steps": 0, "logging_steps": 50, "optim": "adamw_torch_fused"}
        train(output, **{**settings, **arguments})
        monkeypatch.undo()
        return callback.kept

    return run


# For each pass of the language model: two in transformers' mask, and the positions of the targets. The first ids of the
# image prompts are checked. The guard reads whether the step is finite.
BOTH_BRANCHES = {"_local_scalar_dense": 2 * 2 + 1, "nonzero": 2, "tolist": 1}


def test_the_host_reads_few_values(third_step):
    operations, waits = third_step()
    assert waits == BOTH_BRANCHES
    # Clipping and optimiser compute all tensors of a group at once.
    groups = operations["aten._fused_adamw_.default"]
    assert groups <= 2 and {name: operations[name] for name in FUSED} == {**FUSED, "aten._fused_adamw_.default": groups}


def test_the_reid_losses_read_nothing(third_step):
    _, waits = third_step(model={"loss_lambda": 1.0})
    # One value in transformers' mask, without padding, and that of the guard.
    assert waits == {"_local_scalar_dense": 1, "tolist": 1}


def test_micro_batches_add_their_own_reads_alone(third_step):
    _, waits = third_step(gradient_accumulation_steps=2)
    assert waits == {name: count if name == "tolist" else 2 * count for name, count in BOTH_BRANCHES.items()}


def test_captions_in_the_reid_losses_are_chosen_by_a_mask(third_step):
    _, waits = third_step(model={"reid_text": True})
    # Features and people of each captioned row, and the gradient of the features.
    assert waits == {**BOTH_BRANCHES, "mask as an index": 3}
