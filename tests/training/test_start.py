"""`load_for_training`: a model and its processor by name, as the command `train` loads them."""

import shutil

import pytest
import torch
from encoders import has_timm, write_encoder, write_timm
from safetensors.torch import load_file

from modeling_mllmreid import (
    BatchArguments,
    MllmReIDModel,
    MllmReIDProcessor,
    MllmReIDVisionModel,
    MllmReIDVisionProcessor,
    ReIDTrainingArguments,
    load_for_training,
    load_reid_dataset,
    train_reid,
)
from modeling_mllmreid.commands import train
from modeling_mllmreid.utils.errors import UserError

SIZE = {"height": 64, "width": 32}
WHOLE, VISION = (MllmReIDModel, MllmReIDProcessor), (MllmReIDVisionModel, MllmReIDVisionProcessor)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "clip", "clip")


def trained_parts(model) -> set[str]:
    """The modules of the wrapped model in which a parameter is trained, LoRA apart."""
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {"lora" if ".lora_" in name else name.split(".")[0] for name in names}


def test_every_kind_of_name(disk, encoder):
    adapters = {"language_model": "frozen", "tower": "lora", "lora_rank": 2}
    for name, options, kinds, trained in (
        (disk.native, {**SIZE, "loss_lambda": 1}, WHOLE, {"mllm", "reid_head"}),
        (disk.native, {**SIZE, **adapters}, WHOLE, {"mllm", "lora", "reid_head"}),
        (disk.ours, {"triplet_margin": 0.5}, WHOLE, {"mllm", "reid_head"}),
        (encoder, {**SIZE, "pooling": "gem"}, VISION, {"tower", "pooling", "reid_head"}),
        (str(encoder), {**SIZE, "tower": "lora", "lora_rank": 2}, VISION, {"lora", "reid_head"}),
        ("pedestrians-small", {"tower": "frozen"}, VISION, {"reid_head"}),
    ):
        model, processor = load_for_training(name, **options)
        assert (type(model), type(processor)) == kinds
        assert (processor.height, processor.width) == (model.config.height, model.config.width)
        assert trained_parts(model) == trained, name
        for field in options.keys() & {*model.config.to_dict()}:
            assert getattr(model.config, field) == options[field]
    assert model.config.base_licence == "apache-2.0"


@pytest.mark.skipif(not has_timm(), reason="needs timm")
def test_an_encoder_of_timm(tmp_path):
    model, processor = load_for_training(write_timm(tmp_path / "timm", "vit_tiny_patch16_224"), **SIZE)
    assert (type(model), type(processor)) == VISION


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hight": 64}, "load_for_training: unknown field 'hight': did you mean 'height'\\?"),
        ({"output_dir": "run"}, "load_for_training: unknown field 'output_dir': did you mean"),
        ({"tower": "lore"}, "load_for_training: tower: invalid choice: 'lore': .* did you mean 'lora'\\?"),
        ({"dtype": torch.bfloat16}, "dtype: invalid choice: 'torch.bfloat16': .* did you mean 'bfloat16'\\?"),
        ({"triplet_weight": -1}, "load_for_training: triplet_weight: .*-1"),
        ({"language_model": "lora"}, "language_model: an encoder without a language model has none: leave it out"),
        ({"lora_rank": 4}, "lora_rank: there is no LoRA: set language_model or tower to lora, or leave it out"),
        ({"loss_lambda": 0.5}, "loss_lambda is 0.5: an encoder without a language model has none: leave it out"),
    ],
)
def test_wrong_options_are_refused(encoder, options, message):
    with pytest.raises(UserError, match=message):
        load_for_training(encoder, **options)


def test_a_wrong_name_is_refused(tmp_path):
    with pytest.raises(UserError, match="model pedestrians-smal: .*did you mean pedestrians-small\\?"):
        load_for_training("pedestrians-smal")
    with pytest.raises(UserError, match=f"model {tmp_path}: not loadable .*no config.json"):
        load_for_training(tmp_path)


def test_the_seed_decides_the_new_weights(encoder):
    options = {**SIZE, "tower": "lora", "lora_rank": 2}
    first, again, other = (load_for_training(encoder, seed=seed, **options)[0].state_dict() for seed in (1, 1, 2))
    name = next(name for name in first if ".lora_A." in name)
    assert torch.equal(first[name], again[name]) and not torch.equal(first[name], other[name])


def test_the_command_and_python_train_the_same_weights(disk, encoder, tmp_path):
    batch = {"identities_per_batch": 2, "images_per_identity": 2, "max_steps": 2, "learning_rate": 0.01, "seed": 7}
    batch |= {"eval_strategy": "no", "use_cpu": True, "disable_tqdm": True}
    flags = ["--model", str(encoder), "--dataset", "market1501", "--data_dir", str(disk.people), "--pooling", "gem"]
    flags += [f"--{name}={value}" for name, value in {**SIZE, **batch, "output_dir": tmp_path / "command"}.items()]
    train.main(flags)

    model, processor = load_for_training(encoder, **SIZE, pooling="gem", seed=7)
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    dataset = load_reid_dataset("market1501", data_dir=disk.people)
    args = ReIDTrainingArguments(output_dir=tmp_path / "python", **batch)
    train_reid(model, processor, dataset, BatchArguments(), args)
    by_command, by_python = (load_file(tmp_path / name / "model.safetensors") for name in ("command", "python"))
    assert by_command.keys() == by_python.keys() and "reid_head.classifier.weight" in by_python
    assert all(torch.equal(weight, by_python[name]) for name, weight in by_command.items())
    assert not torch.equal(start["reid_head.bottleneck.weight"], by_python["reid_head.bottleneck.weight"])


def test_the_licence_of_the_base_model_is_recorded(encoder, tmp_path):
    shutil.copytree(encoder, tmp_path / "base")
    (tmp_path / "base/README.md").write_text("---\nlicense: mit\n---\n")
    assert load_for_training(tmp_path / "base", **SIZE)[0].config.base_licence == "mit"
    assert load_for_training(encoder, **SIZE)[0].config.base_licence is None
