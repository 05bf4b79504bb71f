"""Similar people: their order by the mean feature, and a training whose batches are groups of them."""

import numpy as np
import pytest
import torch

from modeling_mllmreid.training import run
from modeling_mllmreid.training.similar import NEIGHBOURS, _nearest_people, similar_people
from modeling_mllmreid.utils.errors import UserError


def test_the_order_is_that_of_the_mean_features(monkeypatch):
    monkeypatch.setattr("modeling_mllmreid.training.similar.BLOCK", 2)
    angles = {7: 0.0, 3: 0.1, 9: 0.5, 5: 3.0}
    people = np.array([7, 3, 9, 5, 7])
    features = np.array([[np.cos(angles[p]), np.sin(angles[p])] for p in people], np.float32)
    assert _nearest_people(features, people) == {7: [3, 9, 5], 3: [7, 9, 5], 9: [3, 7, 5], 5: [9, 3, 7]}
    many = _nearest_people(np.eye(100, dtype=np.float32), np.arange(100))
    assert all(len(found) == NEIGHBOURS and person not in found for person, found in many.items())


@pytest.fixture
def batches(monkeypatch):
    """The people of every step of a training, and whom its model found similar."""
    seen, found = [], []

    def spied(*args, **options):
        found.append(similar_people(*args, **options))
        return found[-1]

    def step(self, model, inputs, *given, stock=run.ReIDTrainer.training_step):
        seen.append(inputs["person_ids"].tolist())
        return stock(self, model, inputs, *given)

    monkeypatch.setattr(run, "similar_people", spied)
    monkeypatch.setattr(run.ReIDTrainer, "training_step", step)
    return seen, found


def test_a_training_draws_similar_people_and_a_resumed_one_the_same(train, batches, tmp_path):
    seen, found = batches
    settings = {"similar_people": 2, "max_steps": 6, "model": {"loss_lambda": 1.0}, "diagnostics_steps": 0}
    whole = train("whole", **settings, save_strategy="steps", save_steps=3)
    steps, neighbours = list(seen), found[0]
    people = sorted(neighbours)
    nearest = sum(
        people[other] == neighbours[people[one]][0] or people[one] == neighbours[people[other]][0]
        for step in steps
        for one, other in (step[0:3:2], step[4:7:2])
    )
    assert nearest >= len(steps)  # at least half of the groups
    seen.clear()
    resumed = train("resumed", **settings, resume_from_checkpoint=str(tmp_path / "whole/checkpoint-3"))
    assert seen == steps[3:] and found[1] == neighbours
    for name, weight in whole.trainer.model.state_dict().items():
        assert torch.equal(weight, resumed.trainer.model.state_dict()[name]), name


def test_similar_people_need_batches_of_people(train):
    with pytest.raises(UserError, match="similar_people: groups people of batches of P x K: leave pairs_per_batch out"):
        train(similar_people=2, pairs_per_batch=4, model={"loss_lambda": 0.0})
