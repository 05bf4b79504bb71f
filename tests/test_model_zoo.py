"""The page of models and recipes: complete, and its figures are those of files, recipes and dry runs."""

import re

import pytest
import yaml
from documents import ROOT
from transformers import AutoConfig

from modeling_mllmreid.commands import ablate, train
from modeling_mllmreid.model import MllmReIDVisionModel
from modeling_mllmreid.model.shipped_models import PRETRAINED, shipped_models

CONFIGS = ROOT / "configs"
# The composed LLaVA of the recipes by size.
COMPOSED = {
    "model_type": "llava",
    "text_config": {
        **{"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
        **{"num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49216, "tie_word_embeddings": True},
    },
    "vision_config": {
        **{"model_type": "dinov2", "hidden_size": 384, "num_attention_heads": 6, "num_hidden_layers": 12},
        **{"image_size": 518, "patch_size": 14},
    },
    "vision_feature_layer": -2,
    "image_token_index": 49152,
    "tie_word_embeddings": True,
}


def tables() -> dict[str, list[dict[str, str]]]:
    """The tables of the page by their headings: a dictionary of its cells for each row."""
    found = {}
    for section in (ROOT / "docs/model_zoo.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
        found[section.splitlines()[0]] = [dict(zip(lines[0], cells, strict=True)) for cells in lines[1:]]
    return found


TABLES = tables()
RECIPES, PLANS = TABLES["Recipes for training"], TABLES["Plans of an ablation"]


def name_of(row: dict[str, str]) -> str:
    """The name in the first cell of a row."""
    return re.search("`([^`]+)`", next(iter(row.values())))[1]


def recipe_of(row: dict[str, str]) -> dict:
    return yaml.safe_load((CONFIGS / f"{name_of(row)}.yaml").read_text())


def model_of(row: dict[str, str]) -> str | None:
    """The name on the Hub that a row starts from."""
    found = re.search("`([^`]+/[^`]+)`", row["starts from"])
    return found and found[1]


def test_every_recipe_and_every_model_of_the_package_is_there():
    assert {name_of(row) for row in RECIPES + PLANS} == {path.stem for path in CONFIGS.glob("*.yaml")}
    assert {name_of(row) for row in PLANS} == {path.stem for path in CONFIGS.glob("ablation_*.yaml")}
    assert [name_of(row) for row in TABLES["Models in the package"]] == shipped_models()


def test_a_model_of_the_package_is_as_described():
    for row in TABLES["Models in the package"]:
        folder = PRETRAINED / name_of(row)
        model = MllmReIDVisionModel.from_pretrained(folder)
        assert row["parameters"] == f"{sum(p.numel() for p in model.parameters()):,}"
        assert row["crop"] == f"{model.config.height}x{model.config.width}"
        assert row["tokens"].split()[0] == str(model.config.num_image_tokens)
        sizes = re.findall(r"`([\w.]+)` ([\d.]+) MB", row["files"])
        assert [name for name, _ in sizes] == ["model.safetensors", "model.onnx"]
        assert [size for _, size in sizes] == [f"{(folder / name).stat().st_size / 1e6:.1f}" for name, _ in sizes]


def test_rows_are_what_their_recipes_say():
    for row in RECIPES + PLANS:
        recipe = recipe_of(row)
        people = f"{recipe.get('identities_per_batch')} x {recipe.get('images_per_identity')}"
        pairs = f"{recipe.get('pairs_per_batch')} pairs"
        assert row["P x K"] == (pairs if "pairs_per_batch" in recipe else people)
        if "height" in recipe:
            assert row["crop"] == f"{recipe['height']}x{recipe['width']}"
        model = model_of(row)
        started = recipe.get("base_model" if row in PLANS else "model")
        assert model is None or model == started or f"model {model}`" in row["command"]
        assert ("4 bits" in row["starts from"]) == (recipe.get("quantize") == "4bit")


def test_the_memory_of_the_llava_recipes_is_that_of_their_comments():
    """tests/training/test_full_size.py compares the comments with dry runs."""
    rows = [row for row in RECIPES if name_of(row).startswith("llava_")]
    for row in rows:
        text = (CONFIGS / f"{name_of(row)}.yaml").read_text()
        assert row["memory of a step"] == re.search(r"--dry_run true\): ([\d.]+ GiB)", text)[1]
    assert len(rows) == 5


def dry_run(row: dict[str, str], model: str, capsys) -> None:
    """Compares a row with the dry run of its recipe, from the configuration of its model alone."""
    capsys.readouterr()
    train.main([name_of(row), "--model", model, "--dry_run", "true", "--use_cpu", "true"])
    printed = capsys.readouterr().out
    assert row["memory of a step"] == re.search(r"^total +([\d.]+ GiB)$", printed, re.MULTILINE)[1]
    height, width, tokens = re.search(r"images of (\d+) x (\d+), (\d+) (?:image tokens|patches)", printed).groups()
    assert (row["crop"], row["image tokens"]) == (f"{height}x{width}", tokens)


def published(model: str | None, folder, monkeypatch) -> str:
    """Writes the configuration of a model on the Hub, or of the composed LLaVA, into a folder."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from family_shapes import config_of

    (AutoConfig.for_model(**COMPOSED) if model is None else config_of(model)).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [row for row in RECIPES if name_of(row) in ("pedestrians_small", "projector", "small", "base", "large")],
    ids=lambda row: f"{name_of(row)}-{model_of(row)}",
)
def test_figures_are_those_of_dry_runs(row, tmp_path, monkeypatch, capsys):
    own = name_of(row) == "pedestrians_small"
    dry_run(row, "pedestrians-small" if own else published(model_of(row), tmp_path, monkeypatch), capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [row for row in PLANS if row["memory of the largest step"] != "no dry run"],
    ids=lambda row: f"{name_of(row)}-{model_of(row)}",
)
def test_the_plans(row, tmp_path, monkeypatch, capsys):
    model = published(model_of(row), tmp_path, monkeypatch)
    teacher = ["--teacher_model", model] if "teacher_model" in recipe_of(row) else []
    ablate.main([name_of(row), "--base_model", model, *teacher, "--dry_run", "true"])
    cells = re.findall(r"\| ([\d.]+) \|$", capsys.readouterr().out, re.MULTILINE)
    assert row["memory of the largest step"] == f"{max(map(float, cells)):.1f} GiB"
