"""The duration of a training: a checkpoint holds it, and a training that continues adds to it."""

import json

import pytest

from modeling_mllmreid.training.clock import TrainingClock, training_seconds

RUN = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
NAME = TrainingClock.__name__


def stored(path):
    return json.loads(path.read_text())["stateful_callbacks"][NAME]["attributes"]["seconds"]


@pytest.mark.parametrize("restores", [False, True])
def test_a_training_that_continues_adds_to_the_seconds_of_its_checkpoint(train, tmp_path, restores):
    options = {**RUN, "restore_callback_states_from_checkpoint": restores}
    trainer = train(**options).trainer
    whole = training_seconds(trainer)
    trainer.evaluate()
    assert training_seconds(trainer) == whole  # that evaluation is no part of the training
    states = [tmp_path / f"run/checkpoint-{step}/trainer_state.json" for step in (2, 4)]
    assert 0 < stored(states[0]) < stored(states[1]) == whole

    content = json.loads(states[0].read_text())
    content["stateful_callbacks"][NAME]["attributes"]["seconds"] = 1000.0
    states[0].write_text(json.dumps(content))
    continued = training_seconds(train(**options, resume_from_checkpoint=str(states[0].parent)).trainer)
    assert 1000 < continued < 2000 and stored(states[1]) == continued

    again = training_seconds(train(**options, resume_from_checkpoint=str(states[1].parent)).trainer)
    assert again == continued


def test_a_checkpoint_of_an_earlier_version_has_no_seconds(train, tmp_path):
    train(**RUN)
    path = tmp_path / "run/checkpoint-2/trainer_state.json"
    for change in (lambda found: found.pop(NAME), lambda found: found.update({NAME: {"args": {}, "attributes": {}}})):
        content = json.loads(path.read_text())
        change(content["stateful_callbacks"])
        path.write_text(json.dumps(content))
        trainer = train(**RUN, resume_from_checkpoint=str(path.parent)).trainer
        assert training_seconds(trainer) is None and stored(tmp_path / "run/checkpoint-4/trainer_state.json") is None
