"""Training arguments: the defaults, their computed values, and that settings reach the run."""

import math

import pytest
import torch

from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.utils.errors import UserError


def arguments(tmp_path, **given):
    return ReIDTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **given)


def test_defaults(tmp_path):
    assert vars(BatchArguments()) == {
        "texts": None,
        "target": "continuation",
        "text_branch": True,
        "max_target_tokens": 32,
        "language_share": 1.0,
        "instruction": "common",
        "val_identities": 0,
        "flip": 0.5,
        "pad": 10,
        "erase": 0.5,
        "color_jitter": 0.0,
        "downscale": 0.0,
    }
    args = arguments(tmp_path)
    expected = {
        "identities_per_batch": 16,
        "images_per_identity": 4,
        "per_device_train_batch_size": 64,
        "balance_sets": False,
        "learning_rates": {},
        "diagnostics_steps": 500,
        "grad_cache_chunk": 0,
        "max_skipped_steps": 3,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "mAP",
        "greater_is_better": True,
        "remove_unused_columns": False,
        "report_to": [],
        "resume_from_checkpoint": None,
        "auto_find_batch_size": False,
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,
        "hub_private_repo": True,
    }
    assert {name: getattr(args, name) for name in expected} == expected
    # No evaluation means no best checkpoint.
    without = arguments(tmp_path, eval_strategy="no")
    assert not without.load_best_model_at_end and without.save_strategy == "epoch"
    assert arguments(tmp_path, load_best_model_at_end=False).load_best_model_at_end is False


def test_loading_settings_follow_the_machine_unless_they_are_given(tmp_path, monkeypatch):
    def loading(**given):
        args = ReIDTrainingArguments(output_dir=str(tmp_path), **given)
        return args.dataloader_persistent_workers, args.dataloader_pin_memory

    stock = ReIDTrainingArguments.device
    assert loading(use_cpu=True) == (False, False)
    assert loading(use_cpu=True, dataloader_num_workers=2) == (True, False)
    assert loading(use_cpu=True, dataloader_num_workers=2, dataloader_persistent_workers=False) == (False, False)
    for kind, pinned in (("cuda", True), ("cpu", False)):
        on_device = property(lambda self, kind=kind: stock.fget(self) and torch.device(kind))
        monkeypatch.setattr(ReIDTrainingArguments, "device", on_device)
        assert loading() == (False, pinned)
        for given in (True, False):
            assert loading(dataloader_pin_memory=given) == (False, given)
    with pytest.raises(UserError, match="dataloader_persistent_workers: has no effect without loading processes: set"):
        loading(dataloader_persistent_workers=True)


def test_batches_are_p_by_k(tmp_path):
    sizes = {"identities_per_batch": 3, "images_per_identity": 5}
    for given in (0, 15):
        assert arguments(tmp_path, **sizes, per_device_train_batch_size=given).per_device_train_batch_size == 15
    with pytest.raises(UserError, match=r"identities_per_batch \(3\) and images_per_identity \(5\)"):
        arguments(tmp_path, **sizes, per_device_train_batch_size=8)


def test_learning_rates_are_numbers_by_pattern_in_their_order(tmp_path):
    for given in ('{"tower": 1e-5, "head": 0}', {"tower": "1e-5", "head": 0}):
        rates = arguments(tmp_path, learning_rates=given).learning_rates
        assert list(rates.items()) == [("tower", 1e-5), ("head", 0.0)]
    for wrong, message in (
        ('{"tower": ', "not a JSON object of pattern to number"),
        ("[1]", "not a JSON object"),
        ({"tower": "fast"}, "not a JSON object"),
        ({"tower": None}, "not a JSON object"),
        ({"tower": -1}, "learning_rates: 'tower' has rate -1.0: give 0 or more"),
        ({"tower": math.inf}, "'tower' has rate inf: give 0 or more"),
        ({"tower": math.nan}, "'tower' has rate nan: give 0 or more"),
        ({"(": 1}, "learning_rates"),
    ):
        with pytest.raises(UserError, match=message):
            arguments(tmp_path, learning_rates=wrong)


def test_refused_settings(tmp_path):
    for strategy in ("checkpoint", "all_checkpoints"):
        with pytest.raises(UserError, match=f"hub_strategy {strategy}: publishes optimiser states"):
            arguments(tmp_path, push_to_hub=True, hub_strategy=strategy)
        arguments(tmp_path, hub_strategy=strategy)
    for strategy in ("end", "every_save"):
        arguments(tmp_path, push_to_hub=True, hub_strategy=strategy)
    with pytest.raises(UserError, match="output_dir is empty: give the folder that the model is written to"):
        ReIDTrainingArguments(output_dir="", use_cpu=True)
    metric = {"metric_for_best_model": "loss"}
    for settings in ({}, {"eval_strategy": "no", "save_strategy": "best"}, {"load_best_model_at_end": False}):
        if settings.get("load_best_model_at_end") is False:
            arguments(tmp_path, **metric, **settings)
            continue
        with pytest.raises(UserError, match="metric_for_best_model loss: is not measured on val"):
            arguments(tmp_path, **metric, **settings)
    with pytest.raises(UserError, match="activation_checkpointing_kwargs: 'depth' is unknown|depth is unknown"):
        arguments(tmp_path, activation_checkpointing_kwargs={"depth": 1})


@pytest.mark.parametrize("name", ["flip", "erase", "downscale"])
def test_probabilities(name):
    for value in (0, 1, 0.25):
        assert getattr(BatchArguments(**{name: value}), name) == value
    for value in (-0.01, 1.01, float("nan")):
        with pytest.raises(UserError, match=f"{name} {value}: give a probability, 0 to 1"):
            BatchArguments(**{name: value})


def test_color_jitter():
    assert BatchArguments(color_jitter=0.9).color_jitter == 0.9
    for value in (-0.01, 1.0, float("nan")):
        with pytest.raises(UserError, match=f"color_jitter {value}: give a relative change, 0 or more and below 1"):
            BatchArguments(color_jitter=value)


@pytest.mark.parametrize(("name", "least"), [("max_target_tokens", 1), ("val_identities", 0), ("pad", 0)])
def test_minimum_numbers(name, least):
    assert getattr(BatchArguments(**{name: least}), name) == least
    with pytest.raises(UserError, match=f"{name} {least - 1}: give {least} or more"):
        BatchArguments(**{name: least - 1})


def test_public_settings_have_no_token(tmp_path):
    public = arguments(tmp_path, hub_token="hf_secret", identities_per_batch=3).to_public_dict()
    assert "hf_secret" not in str(public) and not [name for name in public if name.endswith("token")]
    assert public["identities_per_batch"] == 3 and public["seed"] == 42


def test_one_process_has_one_device(tmp_path, monkeypatch):
    args = arguments(tmp_path)
    monkeypatch.setattr(type(args).__mro__[1], "n_gpu", property(lambda self: 4))
    assert args.n_gpu == 1
    monkeypatch.setattr(type(args).__mro__[1], "n_gpu", property(lambda self: 0))
    assert args.n_gpu == 0


def test_settings_reach_the_run(train):
    batch = {"flip": 0.25, "pad": 1, "erase": 0.75, "instruction": "pool", "max_target_tokens": 5, "target": "split"}
    batch |= {"text_branch": False, "val_identities": 5, "color_jitter": 0.2, "downscale": 0.1}
    trained = train(batch=batch, max_steps=1, learning_rate=0.0, seed=9, identities_per_batch=3, images_per_identity=3)
    trainer, samples = trained.trainer, trained.trainer.train_dataset
    assert samples.seed == trainer._sampler.seed == 9
    assert samples.num_identities == 7 and len(set(trained.val.gallery["person_id"])) == 5
    augmentation = samples.augmentation
    assert (augmentation.flip_probability, augmentation.pad, augmentation.erase_probability) == (0.25, 1, 0.75)
    assert (augmentation.color_jitter, augmentation.downscale_probability) == (0.2, 0.1)
    assert samples.num_instructions == len(trainer.data_collator.image_prompts) == 10
    assert max(len(target) for texts in samples.texts for _, target in texts) == 5
    assert trainer.run_fingerprint["val"] and trainer.run_fingerprint["settings"]["flip"] == 0.25
    assert trainer.run_fingerprint["identities"] == trainer.model.config.identities_digest
    rows = next(iter(trainer.get_train_dataloader()))
    assert rows["pixel_values"].shape == (9, 3, 64, 32) and "text_labels" not in rows
    people = rows["person_ids"].view(3, 3)
    assert torch.equal(people, people[:, :1].expand(3, 3)) and len(set(people[:, 0].tolist())) == 3


@pytest.mark.parametrize("reid_text", [False, True])
def test_the_reid_losses_alone_read_texts_for_their_captions_only(train, reid_text):
    trainer = train(
        model={"loss_lambda": 1.0, "reid_text": reid_text},
        batch={"target": "continuation"},
        max_steps=1,
        learning_rate=0.0,
    ).trainer
    rows = next(iter(trainer.get_train_dataloader()))
    assert any(trainer.train_dataset.texts) == reid_text and trainer.data_collator.language is False
    assert rows.keys() >= {"text_caption_mask"} if reid_text else rows.keys() == {"pixel_values", "person_ids"}
    assert "labels" not in rows and ("contrastive_text" in trainer.state.log_history[0]) == reid_text
