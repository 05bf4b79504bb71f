"""Every recipe trains a tiny model with its own precision, adapters and quantisation."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from native import write_native
from transformers import LlavaConfig

from modeling_mllmreid.commands import continuations, embed, train
from modeling_mllmreid.model import MllmReIDModel, MllmReIDProcessor
from modeling_mllmreid.model.adapters import quantized_class
from modeling_mllmreid.retrieval.embeddings import load_embeddings
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.training.adapters import AdapterArguments

RECIPES = sorted((Path(__file__).parents[2] / "configs").glob("llava_1_5_7b_*.yaml"))
# Settings that depend on the size, and on a machine without a GPU.
TINY = {
    "height": 64,
    "width": 32,
    "identities_per_batch": 2,
    "images_per_identity": 2,
    "val_identities": 2,
    "max_target_tokens": 4,
    "warmup_steps": 1,
    "dataloader_num_workers": 0,
    "logging_steps": 1,
    "use_cpu": "true",
    "disable_tqdm": "true",
    # An evaluation in the middle of the run, and a checkpoint with it.
    "max_steps": 2,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A native LLaVA, people with captions, and continuations."""
    root = tmp_path_factory.mktemp("recipes")
    write_pedestrians(root / "people", train_identities=6, test_identities=2, images_per_camera=2, cameras=2)
    write_native(root / "native")
    data = ["--dataset", "market1501", "--data_dir", str(root / "people")]
    data += ["--captions_file", str(root / "people/reid_raw.json")]
    texts = str(root / "texts.jsonl")
    continuations.main(["--model", str(root / "native"), *data, "--output", texts, "--max_new_tokens", "3"])
    return root, data


@pytest.fixture
def run(world, tmp_path):
    """run(recipe, model, output, **fields): trains by the recipe; returns the folder."""
    root, data = world

    def training(recipe, model, output, **fields):
        given = {**TINY, "model": model, "output_dir": tmp_path / output, **fields}
        if "texts" in yaml.safe_load(recipe.read_text()):
            given["texts"] = root / "texts.jsonl"
        train.main([str(recipe), *data, *(part for name, value in given.items() for part in (f"--{name}", str(value)))])
        return tmp_path / output

    return training


# The others have a LoRA without 4 bits, and 4 bits in the tower too.
OFTEN = ("llava_1_5_7b_market1501", "llava_1_5_7b_qlora_24gb", "llava_1_5_7b_tower_only")


@pytest.mark.parametrize(
    "recipe",
    [path if path.stem in OFTEN else pytest.param(path, marks=pytest.mark.slow) for path in RECIPES],
    ids=lambda path: path.stem,
)
def test_a_recipe_trains_evaluates_saves_reloads_and_trains_on(recipe, world, run, tmp_path, monkeypatch):
    recipe_fields = yaml.safe_load(recipe.read_text())
    trained, models = train.train_reid, []
    monkeypatch.setattr(train, "train_reid", lambda model, *rest: models.append(model) or trained(model, *rest))
    first = run(recipe, world[0] / "native", "first")
    (model,) = models
    language_model = model.mllm.model.language_model.named_parameters()
    frozen = {p.dtype for name, p in language_model if ".lora_" not in name and p.is_floating_point()}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    if recipe_fields.get("language_model", "full") != "full":
        assert frozen == {getattr(torch, recipe_fields["dtype"])}
    quantised = {quantized_class(module) for module in model.modules()} - {None}
    assert quantised == ({"Linear4bit"} if recipe_fields.get("quantize") == "4bit" else set())
    assert any(".lora_" in name for name, _ in model.named_parameters()) == ("lora" in recipe_fields.values())
    assert json.loads((first / "metrics.json").read_text())["quantize"] == recipe_fields.get("quantize")
    adapters = json.loads((first / "run.json").read_text())["adapters"]
    assert all(adapters[name] == recipe_fields[name] for name in adapters.keys() & recipe_fields.keys())
    log = json.loads((first / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in log if "eval_mAP" in entry]) == 2
    assert len([entry for entry in log if "loss" in entry]) == 2

    # Another process computes the same embeddings in the same precision.
    images = world[0] / "people/query"
    dtype = getattr(torch, recipe_fields["dtype"])
    run_adapters = AdapterArguments(
        **{name: recipe_fields[name] for name in ("language_model", "quantize") if name in recipe_fields}
    )
    place = {"quantization_config": run_adapters.quantization_config(dtype)} | (
        {"device_map": {"": "cpu"}} if quantised else {}
    )
    loaded = MllmReIDModel.from_pretrained(first, dtype=dtype, **place)
    processor = MllmReIDProcessor.from_pretrained(first)
    pixels = processor(images=[str(path) for path in sorted(images.glob("*.jpg"))])["pixel_values"]
    with torch.inference_mode():
        expected, got = (of.eval().encode_images(pixels) for of in (model, loaded))
    torch.testing.assert_close(got, expected, atol=0.02, rtol=0)
    flags = ["--model", str(first), "--dtype", recipe_fields["dtype"], "--images", str(images)]
    embed.main([*flags, "--output", str(tmp_path / "index")])
    features = load_embeddings(str(tmp_path / "index")).features
    assert np.abs(features - got.numpy()).max() < (0.5 if quantised else 0.02)

    second = run(recipe, first, "second")
    assert json.loads((second / "run.json").read_text())["adapters"] == adapters


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A folder with only the configuration of LLaVA-1.5-7B."""
    folder = tmp_path_factory.mktemp("llava-1.5-7b-hf")
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32064}
    LlavaConfig(text_config={"model_type": "llama", "num_attention_heads": 32, **sizes}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("recipe", "place"),
    [(path, "") for path in RECIPES] + [(RECIPES[0], "config.json")],
    ids=lambda value: getattr(value, "stem", value),
)
def test_a_dry_run_needs_a_configuration_file_alone(recipe, place, published, monkeypatch, capsys, tmp_path):
    """Runs without a GPU, the Hub and bitsandbytes. test_full_size tests the estimate."""
    recipe_fields = yaml.safe_load(recipe.read_text())
    reckoned = []

    class Nothing:
        format = staticmethod(lambda: "reckoned")

    def reckon(config, adapters, args, batches, *, dtype):
        reckoned.append((config, adapters, args, dtype))
        return Nothing

    monkeypatch.setattr(train, "estimate_memory", reckon)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    train.main([str(recipe), "--model", str(published / place), "--dry_run", "true"])
    ((config, adapters, args, dtype),) = reckoned
    assert "reckoned" in capsys.readouterr().out and list(tmp_path.iterdir()) == []
    assert (
        args.bf16
        and args.optim == recipe_fields.get("optim", "adamw_torch_fused")
        and dtype == getattr(torch, recipe_fields["dtype"])
    )
    assert adapters.quantize == recipe_fields.get("quantize") and config.get_text_config().num_hidden_layers == 32
