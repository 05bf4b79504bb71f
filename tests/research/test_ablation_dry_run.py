"""The dry run of an ablation: runs, FLOPs, memory and hours, from the configuration of the base model alone."""

import re
from pathlib import Path

import pytest
from families import CONFIGS
from transformers import AutoConfig

from modeling_mllmreid.commands.ablate import main
from modeling_mllmreid.utils.errors import UserError

SHORT = """
base_model: {folder}
output_dir: {folder}/ablation
train_sets: [market1501]
test_sets: [market1501]
variants:
  B0: {{reid_on: vision, loss_lambda: 1.0}}
  S: {{reid_on: vision}}
  two-stage: {{reid_on: vision, loss_lambda: 1.0, language_first: 0.5}}
contrasts: {{language: [S, B0]}}
seeds: [0, 1]
seeds_of: {{two-stage: [0]}}
rate_factors: [0.5, 1, 2]
budgets: [steps, flops]
flops_of: S
flops_variants: [B0, S]
learning_rate: 0.001
max_steps: 10
height: 56
width: 28
bf16: true
"""


@pytest.fixture
def base(tmp_path):
    def written(family):
        AutoConfig.for_model(**CONFIGS[family]).save_pretrained(tmp_path)
        return tmp_path

    return written


def table(text: str) -> dict[str, tuple[float, float]]:
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \|$", text, re.MULTILINE)
    return {name: (float(flops), float(memory)) for name, flops, memory in rows}


def test_it_counts_runs_and_hours_and_writes_nothing(base, capsys):
    folder = base("LLaVA, DINOv2")
    config = folder / "config.yaml"
    config.write_text(SHORT.format(folder=folder))
    before = sorted(folder.iterdir())
    # So slow a device that small numbers show.
    main([str(config), "--dry_run", "true", "--tflops", "1e-6"])
    printed = capsys.readouterr().out
    assert list(table(printed)) == ["B0", "S", "two-stage"] and sorted(folder.iterdir()) == before
    # Under steps 2 + 2 + 1, under flops 2 of B0; S is its own budget.
    assert "7 different runs and 9 to choose learning rates" in printed
    assert float(re.search(r"([\d.,]+) hours of training at 1e-06 useful TFLOPs", printed)[1].replace(",", "")) > 0


@pytest.mark.parametrize(
    ("plan", "family"),
    [
        pytest.param("ablation_small", "LLaVA, DINOv2", marks=pytest.mark.slow),
        pytest.param("ablation_base", "SmolVLM", marks=pytest.mark.slow),
        pytest.param("ablation_base", "Qwen3-VL", marks=pytest.mark.slow),
    ],
)
def test_a_plan_fits_its_base_model(plan, family, base, capsys):
    main([plan, "--base_model", str(base(family)), "--dry_run", "true"])
    assert {"B0", "S+D", "two-stage common", "S+D, lambda 0.1"} <= table(capsys.readouterr().out).keys()


def test_the_tiny_model_has_no_configuration_yet():
    with pytest.raises(UserError, match="^dry_run: the tiny base model is built by the run itself: give base_model$"):
        main([str(Path(__file__).parents[2] / "configs" / "ablation_demo.yaml"), "--dry_run", "true"])
