"""The trainer passes its settings to sampler, optimiser and evaluation, and evaluates at the right steps."""

import pytest
import torch
from datasets import DatasetDict

from modeling_mllmreid.data.sampler import PKSampler
from modeling_mllmreid.training import trainer as trainer_module


@pytest.fixture
def evaluations(monkeypatch):
    """Returns the settings of every evaluation."""
    calls, evaluate = [], trainer_module.evaluate_model

    def watched(*args, **settings):
        calls.append((args, settings))
        return evaluate(*args, **settings)

    monkeypatch.setattr(trainer_module, "evaluate_model", watched)
    return calls


def test_settings_reach_the_sampler_the_optimiser_and_the_evaluation(train, world, evaluations):
    # Two sets of unequal size: persons 0 to 3, and all others.
    rows = world["train"]
    people = sorted(set(rows["person_id"][:]))
    rows = rows.map(lambda row: {"source": "one" if row["person_id"] in people[:4] else "other"})
    trainer = train(
        dataset=DatasetDict({**world, "train": rows}),
        batch={"val_identities": 2},
        model={"test_feature": "vision"},
        max_steps=1,
        seed=5,
        balance_sets=True,
        weight_decay=0.25,
        learning_rates={"vision_tower": 1e-5},
        per_device_eval_batch_size=3,
    ).trainer
    data = trainer.train_dataset
    expected = PKSampler(
        data.person_ids, data.camera_ids, identities_per_batch=4, images_per_identity=2, seed=5, sources=data.sources
    )
    assert (
        list(trainer.get_train_dataloader().batch_sampler.sampler) == list(expected)
        and len(expected.identities_by_source) == 2
    )
    assert trainer._get_train_sampler(trainer.train_dataset)._names is data.person_names
    trainer.args.balance_sets = False
    assert len(trainer._get_train_sampler().identities_by_source) == 1

    rates = {
        id(p): (group["initial_lr"], group["weight_decay"])
        for group in trainer.optimizer.param_groups
        for p in group["params"]
    }
    tower = trainer.model.mllm.model.vision_tower.encoder.layers[0].mlp.fc1.weight
    projector = trainer.model.mllm.model.multi_modal_projector.linear_1.weight
    assert rates[id(tower)] == (1e-5, 0.25) and rates[id(projector)] == (1e-3, 0.25)
    made = trainer.optimizer
    assert trainer.create_optimizer() is made

    before = len(evaluations)
    metrics = trainer.evaluate()
    ((args, settings),) = evaluations[before:]
    assert args[2] is trainer.eval_dataset.query and args[3] is trainer.eval_dataset.gallery
    assert settings == {"batch_size": 3, "num_workers": 0, "progress": False}
    assert metrics["eval_mAP"] == metrics["eval_vision_mAP"] and "eval_concat_rank1" in metrics
    assert metrics["eval_llm_mAP"] != metrics["eval_vision_mAP"] and all(isinstance(v, float) for v in metrics.values())
    logged = trainer.state.log_history[-1]
    assert logged["eval_mAP"] == metrics["eval_mAP"]
    others = trainer_module.QueryGallery(trainer.eval_dataset.query.select(range(2)), trainer.eval_dataset.gallery)
    again = trainer.evaluate(others, metric_key_prefix="test")
    assert evaluations[-1][0][2] is others.query and {"test_mAP", "test_llm_mAP"} <= again.keys()
    assert trainer.floating_point_ops({}) == 0


@pytest.mark.parametrize("steps", [4, 6])
def test_a_finished_run_is_not_evaluated_again(train, evaluations, steps):
    """Six steps in an epoch: one run ended within an epoch, one at its end."""
    settings = {"max_steps": steps, "eval_strategy": "epoch", "save_strategy": "epoch"}
    first = train(**settings).trainer.state.log_history
    count = len(evaluations)
    again = train(**settings).trainer.state
    assert len(evaluations) == count and again.global_step == steps
    kept = [entry for entry in first if "train_runtime" not in entry]
    assert [entry for entry in again.log_history if "train_runtime" not in entry] == kept


def test_a_run_resumed_at_the_end_of_an_epoch_does_not_evaluate_it_twice(train, tmp_path, evaluations):
    settings = {"max_steps": 12, "eval_strategy": "epoch", "save_strategy": "epoch", "gradient_accumulation_steps": 4}
    # Six micro-batches an epoch are two steps, the second one of two.
    settings |= {"max_steps": 4}
    whole = train("whole", **settings).trainer
    assert [entry["step"] for entry in whole.state.log_history if "eval_mAP" in entry] == [2, 4]
    count = len(evaluations)
    resumed = train("resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"), **settings).trainer
    assert len(evaluations) == count + 1
    times = ("runtime", "per_second", "flos", "train_loss")
    histories = [
        [{k: v for k, v in entry.items() if not any(word in k for word in times)} for entry in run.state.log_history]
        for run in (whole, resumed)
    ]
    assert histories[0] == histories[1]
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_evaluating_does_not_change_the_training(train):
    runs = [
        train(f"run{every}", max_steps=3, eval_strategy="steps", eval_steps=every, load_best_model_at_end=False).trainer
        for every in (1, 100)
    ]
    for (name, one), other in zip(runs[0].model.state_dict().items(), runs[1].model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
