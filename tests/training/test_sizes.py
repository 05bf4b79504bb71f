"""The recipes by size: each fits every family that it names, from the configuration alone."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from families import CONFIGS
from transformers import AutoConfig

from modeling_mllmreid.commands import train
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.options.arguments import MethodArguments, ModelArguments
from modeling_mllmreid.options.parser import build_options, read_options
from modeling_mllmreid.training.adapters import AdapterArguments, apply_adapters
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.loading import load_config
from modeling_mllmreid.training.modules import module_of
from modeling_mllmreid.training.parameters import freeze_unused_parameters, parameter_groups

FOLDER = Path(__file__).parents[2] / "configs"
SIZES = {
    "tiny": ["LLaVA, CLIP"],
    "small": ["LLaVA, DINOv2"],
    "base": ["SmolVLM", "Qwen3-VL"],
    "large": ["LLaVA, CLIP", "Qwen3-VL"],
    "projector": ["LLaVA, DINOv2", "LLaVA, SigLIP"],
}


@pytest.mark.parametrize(
    ("size", "family"), [(size, family) for size, families in SIZES.items() for family in families]
)
def test_a_recipe_fits_its_families(size, family, tmp_path, capsys):
    AutoConfig.for_model(**CONFIGS[family]).save_pretrained(tmp_path)
    flags = [size, "--model", str(tmp_path), "--dry_run", "true"]
    train.main(flags)
    assert re.search(r"^total +[\d.]+ GiB$", capsys.readouterr().out, re.MULTILINE)

    # The learning rates reach the modules that they are for, whatever these are called.
    groups = (ModelArguments, MethodArguments, AdapterArguments, ReIDTrainingArguments)
    given = read_options((*groups, train.DataArguments, train.BatchArguments, train.RunArguments), flags, "train")
    given |= {"use_cpu": True, "output_dir": str(tmp_path / "run")}
    model_args, method, adapters, args = build_options(groups, given, "train")
    with torch.device("meta"):
        model = MllmReIDModel(load_config(model_args, {"num_identities": 9, **method.given()}))
        apply_adapters(model, adapters, torch.bfloat16)
    freeze_unused_parameters(model)
    rates = {args.learning_rate, *args.learning_rates.values()}
    options = {"learning_rate": args.learning_rate, "learning_rates": args.learning_rates}
    groups = parameter_groups(model, weight_decay=0.0, **options)
    rate_of = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    by_module = {
        module: {
            rate_of[id(p)]
            for name, p in model.named_parameters()
            if module_of(model, name) == module and p.requires_grad
        }
        for module in ("heads", "projector", "vision", "llm")
    }
    recipe = yaml.safe_load((FOLDER / f"{size}.yaml").read_text())
    if size == "projector":
        assert {module for module, found in by_module.items() if found} == {"projector"}
    elif size == "tiny":
        assert rates == {1e-3} and all(found == {1e-3} for found in by_module.values())
    else:
        named = [*recipe["learning_rates"].values(), recipe["learning_rate"]]
        assert [by_module[name] for name in ("heads", "projector", "vision", "llm")] == [{rate} for rate in named]
    # The family's own crop.
    assert (model.config.height, model.config.width) == model.backbone.default_size


def test_a_dry_run_shows_what_fewer_recomputed_layers_cost(tmp_path, capsys):
    """Memory grows from all layers computed again to none, and each line is what the setting itself gives."""
    AutoConfig.for_model(**CONFIGS["LLaVA, CLIP"]).save_pretrained(tmp_path)

    def totals(*flags):
        train.main(["large", "--model", str(tmp_path), "--dry_run", "true", *flags])
        printed = capsys.readouterr().out
        found = re.findall(r"^a faster step with (.+): ([\d.]+) GiB in total$", printed, re.MULTILINE)
        found.insert(0, ("", re.search(r"^total +([\d.]+) GiB$", printed, re.MULTILINE)[1]))
        return {setting: float(total) for setting, total in found}

    every = totals()
    assert list(every) == ["", *(f"every_n_layers {n}" for n in (2, 3, 4)), "activation_checkpointing false"]
    assert list(every.values()) == sorted(every.values()) and every["activation_checkpointing false"] > 1.5 * every[""]
    third = totals("--activation_checkpointing_kwargs", '{"every_n_layers": 3}')
    assert third[""] == every["every_n_layers 3"] and "every_n_layers 3" not in third
    assert totals("--activation_checkpointing", "false") == {"": every["activation_checkpointing false"]}


def test_a_dry_run_counts_what_pairs_keep(tmp_path, capsys):
    """The readings of all crops stay until the backward pass. If nothing is recomputed, what questions see does too."""
    AutoConfig.for_model(**CONFIGS["LLaVA, CLIP"]).save_pretrained(tmp_path)
    flags = ["large", "--model", str(tmp_path), "--dry_run", "true", "--identities_per_batch", "999"]
    recomputed, kept = [], []
    for weight in ("0", "1"):
        train.main([*flags, "--pair_weight", weight])
        printed = capsys.readouterr().out
        recomputed.append(float(re.search(r"^activations +([\d.]+) GiB$", printed, re.MULTILINE)[1]))
        kept.append(
            float(re.search(r"^a faster step with activation_checkpointing false: ([\d.]+)", printed, re.MULTILINE)[1])
        )
    assert recomputed[1] > recomputed[0] and kept[1] - kept[0] > recomputed[1] - recomputed[0]
