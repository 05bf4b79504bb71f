"""Checkpoints from other people: none of their code runs, and a broken one gives one line."""

import json
import os
import pickle
import shutil
import stat

import pytest
import torch

from modeling_mllmreid.training import checkpointing
from modeling_mllmreid.utils.errors import UserError

RUN = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 3}


class Runs:
    """Creates the file when it is unpickled."""

    def __init__(self, file):
        self.file = str(file)

    def __reduce__(self):
        return os.mkdir, (self.file,)


@pytest.fixture
def checkpoint(train, tmp_path):
    """A copy of a checkpoint in its own folder."""
    train("theirs", **RUN)
    shutil.move(tmp_path / "theirs/checkpoint-2", tmp_path / "given")
    return tmp_path / "given"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_that_runs_code_is_refused(train, checkpoint, tmp_path, name):
    for content in (pickle.dumps(Runs(tmp_path / "ran")), None):
        if content is None:
            torch.save({"state": Runs(tmp_path / "ran")}, checkpoint / name)
        else:
            (checkpoint / name).write_bytes(content)
        with pytest.raises(UserError, match=r"checkpoint .*given: states? of .*: give another checkpoint") as stop:
            train(**RUN, resume_from_checkpoint=str(checkpoint))
        assert "\n" not in str(stop.value) and not (tmp_path / "ran").exists()
    torch.load(checkpoint / name, weights_only=False)  # the code would run
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("optimizer.pt", None, "given: has no optimizer.pt .was it saved with save_only_model"),
        ("optimizer.pt", b"PK cut off", "states of optimiser and schedule"),
        ("trainer_state.json", "{", "trainer_state.json: not JSON"),
        ("trainer_state.json", '{"global_step": "two"}', "trainer_state.json: field global_step: .*not 'two'"),
        ("trainer_state.json", '{"global_step": 2, "surprise": 1}', "trainer_state.json: .*surprise"),
        ("trainer_state.json", None, "not a checkpoint of a training, as it has no trainer_state.json"),
        ("log_window_0.json", '{"loss": 0.5, "step": 2}', "log_window_0.json: field parts"),
        ("log_window_0.json", '{"loss": 0.5, "step": 2, "parts": {"sums": [], "counts": {}}}', "field parts.sums"),
        ("run_facts.json", "[]", "run_facts.json: the whole content"),
        ("model.safetensors", b"cut", "checkpoint .*model.safetensors|a .safetensors file is cut off"),
    ],
)
def test_a_broken_checkpoint_gives_one_line(train, checkpoint, name, content, message):
    path = checkpoint / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as stop:
        train(**RUN, resume_from_checkpoint=str(checkpoint))
    assert "\n" not in str(stop.value)


def test_the_complete_checkpoint_continues(train, checkpoint):
    assert train(**RUN, resume_from_checkpoint=str(checkpoint)).trainer.state.global_step == 4


@pytest.fixture
def deepspeeds(tmp_path, monkeypatch):
    """A checkpoint in the layout of DeepSpeed, with its proof."""
    monkeypatch.setattr(checkpointing, "HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "checkpoint-2"
    (folder / "global_step2").mkdir(parents=True)
    torch.save({"step": 2}, folder / "global_step2/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (folder / "latest").write_text("global_step2")
    (folder / "config.json").write_text("{}")
    checkpointing.write_proof(folder)
    return folder


def test_deepspeed_reads_only_checkpoints_of_own_trainings(deepspeeds, tmp_path, monkeypatch):
    key = tmp_path / "home/mllmreid/checkpoint_key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and len(key.read_bytes()) == 32
    # The proof still holds after a move and with another README.
    moved = tmp_path / "moved"
    shutil.copytree(deepspeeds, moved)
    (moved / "config.json").write_text('{"a": 1}')
    checkpointing.refuse_foreign_checkpoint(moved)
    states = next((moved / "global_step2").iterdir())

    def refused(change, message):
        folder = tmp_path / "changed"
        shutil.copytree(moved, folder)
        change(folder)
        with pytest.raises(UserError, match=message):
            checkpointing.refuse_foreign_checkpoint(folder)
        shutil.rmtree(folder)

    others = "they differ from those that your own training wrote"
    refused(lambda at: (at / "global_step2" / states.name).write_bytes(pickle.dumps(Runs("x"))), others)
    refused(lambda at: (at / "global_step2/mp_rank_00_model_states.pt").write_bytes(b""), others)
    refused(lambda at: (at / "latest").write_text("../elsewhere"), others)
    refused(lambda at: (at / "proof.json").unlink(), "no proof.json proves that your own training wrote")
    refused(lambda at: (at / "proof.json").write_text(json.dumps({"hmac": "0" * 64})), others)
    refused(lambda at: (at / "proof.json").write_text("{}"), "proof.json: field hmac")
    refused(lambda at: (at / "global_step3").symlink_to(moved), "is a symbolic link")
    # The key of another user.
    monkeypatch.setattr(checkpointing, "HF_HOME", str(tmp_path / "another"))
    refused(lambda at: None, others)


def test_a_training_under_deepspeed_checks_before_it_reads(train, deepspeeds):
    trainer = train(max_steps=1).trainer
    trainer.is_deepspeed_enabled = True
    (deepspeeds / "latest").write_text("other")
    with pytest.raises(UserError, match="DeepSpeed runs any code in its files"):
        trainer.train(resume_from_checkpoint=str(deepspeeds))
    trainer.state.best_model_checkpoint = str(deepspeeds)
    with pytest.raises(UserError, match="DeepSpeed runs any code in its files"):
        trainer._load_best_model()


def test_only_the_owner_can_read_checkpoints(train, tmp_path):
    before = os.umask(0o022)
    try:
        train("own", **RUN)
    finally:
        assert os.umask(before) == 0o022
    written = [path for path in (tmp_path / "own").rglob("*") if path != tmp_path / "own"]
    assert len(written) > 30
    for path in written:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
