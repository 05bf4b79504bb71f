"""ReIDTrainer in real tiny runs: exact scaling, logs, evaluation, saved files, and exact resuming."""

import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import TrainerCallback
from unknown_people import CALIBRATION

from modeling_mllmreid.data.contract import image_sources
from modeling_mllmreid.evaluation.protocol import embed_query_gallery
from modeling_mllmreid.evaluation.threshold import load_thresholds
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.training.batches import label_counts
from modeling_mllmreid.training.trainer import ReIDTrainer
from modeling_mllmreid.utils.errors import UserError


def weights(trained):
    return {name: value.clone() for name, value in trained.trainer.model.state_dict().items()}


def gradients(trainer: ReIDTrainer, micro_batches: list[dict]) -> dict[str, torch.Tensor]:
    """Returns the gradients of one optimiser step of the trainer: counting, loss, scaling, backward."""
    model = trainer.model
    model.zero_grad()
    samples, count = trainer.get_batch_samples(iter(micro_batches), len(micro_batches), trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(samples)
    for batch in samples:
        trainer.training_step(model, batch, count)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_accumulated_language_gradients_equal_those_of_one_batch(train):
    # Lambda 0, as the ReID losses mine within a batch and do not add up over its halves.
    trainer = train(model={"loss_lambda": 0.0, "distillation_weight": 0.5}, max_steps=1).trainer
    batch = next(iter(trainer.get_train_dataloader()))
    # Unequal label counts, so that a mean of means would differ.
    for name in ("labels", "text_labels"):
        batch[name][4:] = torch.where(torch.rand(batch[name][4:].shape) < 0.5, -100, batch[name][4:])
    batch["text_labels"][:, :] = -100
    for row in range(8):
        kept = batch["labels"][row][batch["labels"][row] != -100]
        start = int(batch["text_attention_mask"][row].sum()) - len(kept)
        batch["text_labels"][row, start : start + len(kept)] = kept
    halves = [{name: value[half] for name, value in batch.items()} for half in (slice(0, 4), slice(4, 8))]
    assert label_counts(halves[0])[0] != label_counts(halves[1])[0]
    whole, accumulated = gradients(trainer, [batch]), gradients(trainer, halves)
    assert whole.keys() == accumulated.keys() and len(whole) > 20
    for name, gradient in whole.items():
        assert torch.allclose(accumulated[name], gradient, atol=1e-6, rtol=1e-4), name


def test_the_reid_loss_is_the_mean_over_micro_batches(train):
    trainer = train(model={"loss_lambda": 1.0}, max_steps=1).trainer
    loader = iter(trainer.get_train_dataloader())
    first, second = next(loader), next(loader)
    one, other = (gradients(trainer, [batch]) for batch in (first, second))
    both = gradients(trainer, [first, second])
    for name, gradient in both.items():
        assert torch.allclose(gradient, (one[name] + other[name]) / 2, atol=1e-5, rtol=1e-3), name


@pytest.mark.parametrize("chunk", [0, 3])
def test_the_weight_of_the_reid_losses_rises_over_the_warm_up(train, chunk):
    # A learning rate of 0 keeps the losses of every step as they are.
    run = {
        "max_steps": 5,
        "learning_rate": 1e-12,
        "logging_steps": 1,
        "grad_cache_chunk": chunk,
        "diagnostics_steps": 0,
    }
    fields = {"id_weight": 1.0, "triplet_weight": 0.0, "reid_on": "vision", "label_smoothing": 0.0}
    logs = train(reid_warmup_steps=3, model={"loss_lambda": 0.5, **fields}, **run).trainer.state.log_history
    steps = [entry for entry in logs if "lm_image" in entry]
    shares = []
    for entry in steps:
        language = (entry["lm_image"] + entry["lm_text"]) / 2
        shares.append((entry["loss"] - 0.5 * language) / (0.5 * entry["id_vision"]))
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1, 1], abs=2e-3)


def test_losses_fall_and_are_logged_by_name(train):
    history = train(max_steps=60, logging_steps=20, learning_rate=3e-3).trainer.state.log_history
    steps = [entry for entry in history if "loss" in entry]
    names = {"id_llm", "id_vision", "triplet_llm", "triplet_vision", "lm_image", "lm_text"}
    assert all(names <= entry.keys() for entry in steps)
    assert all(steps[-1][name] < steps[0][name] for name in ("lm_image", "lm_text", "id_llm", "id_vision"))


@pytest.mark.parametrize("loss_lambda", [0.0, 1.0])
def test_the_ends_of_lambda_train(train, loss_lambda):
    entry = train(model={"loss_lambda": loss_lambda}, max_steps=2).trainer.state.log_history[0]
    assert ("lm_image" in entry) == (loss_lambda < 1) and ("id_llm" in entry) == (loss_lambda > 0)


def test_captions_in_the_reid_losses_alone_train_no_text(train):
    settings = {"max_steps": 2, "batch": {"text_branch": False}, "model": {"reid_text": True, "loss_lambda": 0.7}}
    trained = train(**settings).trainer
    entry = trained.state.log_history[0]
    assert "lm_text" not in entry and {"lm_image", "contrastive_text"} <= entry.keys()
    batch = next(iter(trained.get_train_dataloader()))
    assert {name for name in batch if name.startswith("text_")} == {
        "text_input_ids",
        "text_attention_mask",
        "text_caption_mask",
    }
    # The sequence ends with its caption, as in `encode_text`.
    ends = batch["text_caption_mask"].cumsum(1).argmax(1) + 1
    assert torch.equal(batch["text_attention_mask"].sum(1), ends)


def test_evaluation_selects_and_keeps_the_best_and_nothing_secret_is_saved(train, tmp_path):
    settings = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    trained = train(max_steps=6, hub_token="hf_secret", **settings)
    state = trained.trainer.state
    scores = [entry["eval_mAP"] for entry in state.log_history if "eval_mAP" in entry]
    assert len(scores) == 3 and state.best_metric == max(scores)
    assert "eval_rank1" in state.log_history[-2] or any("eval_rank1" in entry for entry in state.log_history)
    best = MllmReIDModel.from_pretrained(state.best_model_checkpoint).state_dict()
    kept = MllmReIDModel.from_pretrained(tmp_path / "run").state_dict()
    assert all(torch.equal(best[name], kept[name]) for name in best)
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            assert b"hf_secret" not in path.read_bytes(), path
    top = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"config.json", "model.safetensors", "training_args.json", "modeling_mllmreid.py"} <= top
    assert not [name for name in top if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert json.loads((tmp_path / "run" / "training_args.json").read_text())["identities_per_batch"] == 4
    # Train and val share no person.
    trained_on = set(trained.trainer.train_dataset.person_ids)
    assert trained_on.isdisjoint(trained.val.query["person_id"][:]) and len(trained_on) == 8
    assert MllmReIDModel.from_pretrained(tmp_path / "run").config.trained_on == ["market1501"]


def test_callbacks_see_an_evaluation_and_its_metrics(train):
    seen = []

    class Watching(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            seen.append((args, state.global_step, control, metrics))

    trainer = train(max_steps=2).trainer
    trainer.add_callback(Watching())
    metrics = trainer.evaluate()
    assert seen == [(trainer.args, 2, trainer.control, metrics)] and 0 < metrics["eval_mAP"] <= 1


def test_thresholds_are_chosen_on_val_and_kept_with_the_checkpoint(train, tmp_path, capsys):
    trained = train(max_steps=2)
    chosen = load_thresholds(str(tmp_path / "run"))
    assert list(chosen) == ["llm", "vision", "concat"]
    query, gallery = embed_query_gallery(trained.trainer.model, trained.trainer.processing_class, *trained.val)
    persons = [part["person_id"][:] for part in trained.val]
    for name, threshold in chosen.items():
        others = np.where(np.equal.outer(*persons), 2, 1 - query[name] @ gallery[name].T).min(1)
        assert (
            threshold.gallery == len(persons[1])
            and threshold.searches == len(others) == 12
            and (others <= threshold.distance - 1e-6).sum() == 1
        )
    assert {threshold.calibration for threshold in chosen.values()} == {None}  # few people
    capsys.readouterr()
    train(max_steps=2, batch={"val_identities": 0})
    assert load_thresholds(str(tmp_path / "run")) == {}  # the older thresholds belong to other weights
    printed = capsys.readouterr().out
    assert "no threshold for searches: there is no val split; set val_identities higher, or run the command" in printed


def test_the_calibration_is_fitted_on_all_crops_of_val(train, tmp_path, monkeypatch):
    fitted = []

    def fit(features, persons):
        fitted.append((features.shape[0], sorted(np.unique(persons, return_counts=True)[1].tolist())))
        return CALIBRATION

    monkeypatch.setattr("modeling_mllmreid.evaluation.threshold_fit.fit_calibration", fit)
    query, gallery = train(max_steps=1).val
    counts = np.unique(query["person_id"][:] + gallery["person_id"][:], return_counts=True)[1]
    assert fitted == 3 * [(len(query) + len(gallery), sorted(counts.tolist()))]
    assert all(t.calibration == CALIBRATION for t in load_thresholds(str(tmp_path / "run")).values())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_ends_with_the_same_bits(train, tmp_path, workers):
    # Six batches in an epoch, so step 8 is in the middle of the second.
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 8, "dataloader_num_workers": workers}
    whole = train("whole", **settings)
    checkpoint = tmp_path / "whole" / "checkpoint-8"
    resumed = train("resumed", resume_from_checkpoint=str(checkpoint), **settings)
    expected, got = weights(whole), weights(resumed)
    assert all(torch.equal(got[name], value) for name, value in expected.items())
    losses = [[e["loss"] for e in run.trainer.state.log_history if "loss" in e][-4:] for run in (whole, resumed)]
    assert losses[0] == losses[1]


def test_batches_do_not_depend_on_the_number_of_workers(train):
    runs = [weights(train(f"workers{n}", max_steps=3, dataloader_num_workers=n)) for n in (0, 2)]
    assert all(torch.equal(runs[1][name], value) for name, value in runs[0].items())


def test_random_numbers_do_not_depend_on_the_loading_processes(train, monkeypatch, tmp_path):
    states, stock = {}, ReIDTrainer.train

    def recorded(self, *args, **kwargs):
        output = stock(self, *args, **kwargs)
        states[Path(self.args.output_dir).name] = torch.get_rng_state()
        # Those that stay from epoch to epoch end with the training.
        assert not multiprocessing.active_children()
        return output

    monkeypatch.setattr(ReIDTrainer, "train", recorded)
    # Three epochs of six batches. Step 8 is in the second one.
    settings = {"max_steps": 18, "save_strategy": "steps", "save_steps": 8, "save_total_limit": 3}
    settings |= {"eval_strategy": "no"}
    train("none", **settings)
    kept = train("kept", **settings, dataloader_num_workers=1)
    train("new", **settings, dataloader_num_workers=1, dataloader_persistent_workers=False)
    checkpoint = str(tmp_path / "kept" / "checkpoint-8")
    train("resumed", **settings, dataloader_num_workers=1, resume_from_checkpoint=checkpoint)
    assert kept.trainer.args.dataloader_persistent_workers and len(states) == 4
    assert all(torch.equal(state, states["none"]) for state in states.values())


def test_activation_checkpointing_gives_the_same_weights(train):
    trained = [train(f"checkpointing{on}", max_steps=2, activation_checkpointing=on) for on in (False, True)]
    for run, on in zip(trained, (False, True), strict=True):
        llava = run.trainer.model.mllm.model
        assert llava.language_model.layers[0].gradient_checkpointing == on
        assert llava.vision_tower.encoder.layers[0].gradient_checkpointing == on
    plain, checkpointed = map(weights, trained)
    assert all(torch.allclose(checkpointed[name], value, atol=1e-6) for name, value in plain.items())


def test_weights_of_half_precision_are_not_trained(train):
    with pytest.raises(UserError, match="is trained in torch.bfloat16, where small updates are lost: load the model"):
        train(max_steps=1, half=True)


def test_a_checkpoint_trained_on_others_gets_a_new_classifier(train):
    trained = train(max_steps=1, model={"num_identities": 3})
    assert trained.trainer.model.reid_head["llm"].classifier.weight.shape[0] == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"identities_per_batch": 9},
            "12 people in the train split, but val_identities 4 and identities_per_batch 9 need 13: lower one of",
        ),
        (
            {"identities_per_batch": 20, "batch": {"val_identities": 0}},
            "lower identities_per_batch or give more people",
        ),
        (
            {"batch": {"val_identities": 0}, "eval_strategy": "epoch", "save_strategy": "epoch"},
            "set val_identities, or eval_strategy to 'no'",
        ),
        ({"batch": {"target": "continuation"}}, "has no continuation: run the continuations command"),
        ({"resume_from_checkpoint": "true"}, "no checkpoint in .*: leave it out to start again"),
        ({"remove_unused_columns": True}, "remove_unused_columns True: the batches need those"),
        (
            {"batch": {"text_branch": False}, "model": {"distillation_weight": 0.5}},
            "distillation_weight needs the text branch as its teacher: set text_branch true",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_the_first_step(train, change, message):
    with pytest.raises(UserError, match=message):
        train(max_steps=1, **change)


def test_a_data_set_without_a_train_split_is_refused(train, world):
    only = DatasetDict({"query": world["query"], "gallery": world["gallery"]})
    with pytest.raises(UserError, match="has query, gallery: training needs a train split"):
        train(max_steps=1, dataset=only)


def test_a_broken_image_is_named_before_the_first_step(train, world, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8 no picture")
    rows = world["train"]
    paths = [str(broken) if i == 5 else path for i, path in enumerate(image_sources(rows))]
    rows = Dataset.from_dict({**rows.remove_columns("image").to_dict(), "image": paths}, features=rows.features)
    with pytest.raises(UserError, match="broken.jpg"):
        train(max_steps=1, dataset=DatasetDict({"train": rows}))
