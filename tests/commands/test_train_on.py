"""`train` on a checkpoint of this package: settings are applied or refused, and run.json records them."""

import json

import pytest
from transformers.quantizers import auto

from modeling_mllmreid.commands import train
from modeling_mllmreid.model.adapters import quantized_class
from modeling_mllmreid.utils.errors import UserError

QUIET = "--max_steps 1 --eval_strategy no --save_strategy no --loss_lambda 1 --use_cpu true --disable_tqdm true"
SIZES = "--identities_per_batch 2 --images_per_identity 2"


@pytest.fixture(scope="module")
def run(disk, tmp_path_factory):
    """run(model, output, flags): trains a step; returns the folder."""
    root = tmp_path_factory.mktemp("train_on")

    def training(model, output, flags=""):
        data = ["--dataset", "market1501", "--data_dir", str(disk.people), "--output_dir", str(root / output)]
        train.main(["--model", str(model), *data, *SIZES.split(), *QUIET.split(), *flags.split()])
        return root / output

    return training


@pytest.fixture(scope="module")
def thin(disk, run):
    lora = "--height 64 --width 32 --language_model lora --tower frozen --lora_rank 2 --lora_dropout 0.25"
    return run(disk.native, "thin", lora)


def adapters(folder):
    return json.loads((folder / "run.json").read_text())["adapters"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            "--language_model full",
            "language_model full: the thin checkpoint .* has lora, and further training keeps that",
        ),
        ("--language_model frozen", "language_model frozen: .* has lora"),
        ("--tower full", "tower full: .* has frozen"),
        ("--tower lora", "tower lora: .* has frozen"),
        ("--lora_rank 4", "lora_rank 4: .* has 2"),
        ("--lora_alpha 8", "lora_alpha 8.0: .* has 32"),
        ("--lora_dropout 0.05", "lora_dropout 0.05: .* has 0.25"),
        ("--lora_targets .*q_proj", "lora_targets .*: .* has none"),
        ("--reid_on vision", "reid_on is vision: a thin checkpoint keeps its heads"),
        ("--bnneck false", "bnneck is False: a thin checkpoint keeps its heads"),
    ],
)
def test_changes_that_a_thin_checkpoint_cannot_take_are_refused(run, thin, flags, message):
    with pytest.raises(UserError, match=message) as stop:
        run(thin, "refused", flags)
    assert "\n" not in str(stop.value) and not thin.with_name("refused").exists()


@pytest.mark.parametrize("flags", ["", "--language_model lora --lora_rank 2 --tower frozen"])
def test_a_thin_checkpoint_continues_with_its_own_settings(run, thin, flags):
    expected = {"language_model": "lora", "tower": "frozen", "lora_rank": 2, "lora_alpha": 32, "lora_dropout": 0.25}
    assert adapters(run(thin, "on", flags)) == {**expected, "lora_targets": None, "quantize": None}
    with pytest.MonkeyPatch.context() as patch:
        seen = []
        patch.setattr(train, "estimate_memory", lambda config, adapters, *_, **__: seen.append(adapters) or _Nothing)
        run(thin, "dry", f"{flags} --dry_run true")
    assert seen[0].to_record() == adapters(thin)


class _Nothing:
    format = staticmethod(str)


def test_quantize_loads_the_backbone_of_a_thin_checkpoint_in_4_bits(run, thin, monkeypatch):
    pytest.importorskip("bitsandbytes")
    models, real = [], train.train_reid
    monkeypatch.setattr(train, "train_reid", lambda model, *rest: models.append(model) or real(model, *rest))
    folder = run(thin, "4bit", "--quantize 4bit")
    assert sum(quantized_class(module) == "Linear4bit" for module in models[0].modules()) == 7
    assert adapters(folder)["quantize"] == "4bit" and adapters(folder)["lora_rank"] == 2


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_quantised_weights_are_created_on_the_training_device(disk, run, thin, monkeypatch, quantize):
    """transformers puts them on a GPU by default, and 8-bit weights that are moved to the CPU crash there."""
    pytest.importorskip("bitsandbytes")
    places, update = [], auto.AUTO_QUANTIZER_MAPPING[f"bitsandbytes_{quantize}"].update_device_map
    monkeypatch.setattr(
        auto.AUTO_QUANTIZER_MAPPING[f"bitsandbytes_{quantize}"],
        "update_device_map",
        lambda self, device_map: places.append(device_map) or update(self, device_map),
    )
    run(thin, f"thin_{quantize}", f"--quantize {quantize}")
    run(disk.native, f"native_{quantize}", f"--height 64 --width 32 --language_model frozen --quantize {quantize}")
    assert places == [{"": "cpu"}] * 2


def test_a_full_checkpoint_becomes_thin_and_a_frozen_one_records_no_lora(disk, run):
    folder = run(disk.ours, "of_ours", "--language_model frozen --lora_rank 4")
    assert adapters(folder) == {"language_model": "frozen", "tower": "full", "quantize": None}
    assert json.loads((folder / "config.json").read_text())["backbone"] == str(disk.ours)
    with pytest.raises(UserError, match="lora_rank 4: the thin checkpoint .* has no LoRA"):
        run(folder, "refused", "--lora_rank 4")
    assert adapters(run(folder, "on_frozen")) == adapters(folder)


def test_new_heads_are_reported(disk, run, caplog):
    run(disk.ours, "other_heads", "--bnneck false --reid_on llm")
    assert "reid_on is llm and bnneck is False, unlike in the checkpoint: ReID heads: llm new, vision dropped" in (
        caplog.text
    )


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (".*vision_tower.*q_proj", "matches no layer of the language_model, and language_model is lora"),
        (".*(q_proj|lm_head)", "matches layers of the vision_tower, and tower is frozen"),
        (
            r".*language_model.*q_proj|.*linear_1",
            "matches model.multi_modal_projector.linear_1, which takes no LoRA",
        ),
        ("(", "not a regular expression"),
    ],
)
def test_lora_targets_belong_to_the_modules_with_lora(disk, run, targets, message):
    with pytest.raises(UserError, match=message):
        run(disk.ours, "refused", f"--language_model lora --tower frozen --lora_targets {targets}")
