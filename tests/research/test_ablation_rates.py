"""The learning rate of each variant of an ablation, chosen on people of the train split."""

import json

import numpy as np
import pytest
from in_this_process import InThisProcess

from modeling_mllmreid.commands.ablate import main
from modeling_mllmreid.research.ablation import runs as sweep
from modeling_mllmreid.research.ablation.rates import with_factor
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.utils.errors import UserError

CONFIG = """
output_dir: {folder}/ablation
train_sets: [market1501]
test_sets: [market1501]
data_dirs: {{market1501: {folder}/people}}
variants:
  B0: {{reid_on: vision, learning_rates: {{reid_head: 0.003}}}}
  D: {{reid_on: both}}
contrasts:
  DirectReID: [D, B0]
sweep_of: D
sweep_lambdas: [1]
rate_factors: [0.01, 3]
rate_people: 3
seeds: [5]
agreement_images: 0
loss_lambda: 1.0
learning_rate: 0.001
max_steps: 4
logging_steps: 4
height: 64
width: 32
hidden_size: 32
tower_layers: 1
lm_layers: 1
pretraining_people: 20
pretraining_steps: 2
alignment_people: 4
alignment_steps: 2
identities_per_batch: 3
images_per_identity: 2
use_cpu: true
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    write_pedestrians(tmp_path / "people", train_identities=8, test_identities=4, images_per_camera=2, cameras=2)
    monkeypatch.setattr(sweep, "ProcessPoolExecutor", InThisProcess)
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(folder=tmp_path))
    return path


def test_each_variant_takes_the_rate_that_is_best_on_val(config, monkeypatch, capsys):
    trained, train_stages = [], sweep.train_stages

    def watched(run, model, processor, dataset, *rest):
        trained.append((run, set(dataset["train"]["person_id"][:])))
        return train_stages(run, model, processor, dataset, *rest)

    monkeypatch.setattr(sweep, "train_stages", watched)
    main([str(config)])
    folder = config.parent / "ablation"
    tries = [(run, people) for run, people in trained if run.val_people]
    finals = [(run, people) for run, people in trained if not run.val_people]
    assert len(tries) == 4 and len(finals) == 2
    # Everybody else is trained on, with the first seed, and the people of val are the test.
    assert {len(people) for _, people in tries} == {5} and {len(people) for _, people in finals} == {8}
    assert {run.seed for run, _ in tries} == {5} and {run.stages for run, _ in trained} == {(0, 4)}
    plan = json.loads((folder / "plan.json").read_text())
    for variant, features in (("B0", ["vision"]), ("D", ["vision", "llm"])):
        measured = {}
        for run, _ in tries:
            if run.variant == variant:
                result = json.loads((folder / "runs" / run.folder / "result.json").read_text())
                assert set(result["tests"]) == {"val"}
                values = [result["tests"]["val"][feature]["mAP"] for feature in features]
                measured[run.settings["learning_rate"]] = np.mean(values)
        assert set(measured) == {0.00001, 0.003}
        best = max(measured, key=measured.get)
        assert plan["rows"][variant]["learning_rate"] == best
        assert {run.settings["learning_rate"] for run, _ in finals if run.variant.startswith(variant)} == {best}
        assert plan["rates"][variant] == {"0.01": measured[0.00001], "3.0": measured[0.003]}
        # The sweep is not tried; with the same lambda it is the same run.
        if variant == "D":
            assert plan["rows"]["D, lambda 1"] == plan["rows"]["D"] and "D, lambda 1" not in plan["rates"]
    heads = {run.settings["learning_rate"]: run.settings["learning_rates"] for run, _ in tries if run.variant == "B0"}
    assert heads == {0.00001: {"reid_head": 0.00003}, 0.003: {"reid_head": 0.009}}
    report = (folder / "report.md").read_text()
    assert "## Learning rates" in report and "| variant | 0.01 | 3 | taken |" in report
    assert "without 3 people of the train split" in report and "At an end of the grid" in report
    assert "The variants of the sweep have the factor of D." in report
    capsys.readouterr()
    main([str(config)])
    printed = capsys.readouterr().out
    assert "4 runs, 0 of them to do" in printed and "2 runs, 0 of them to do" in printed


def test_factors_need_a_rate_and_enough_people(config):
    with pytest.raises(UserError, match="rate_factors: learning_rate is missing: give the rate that the factors mult"):
        with_factor({"learning_rates": {"x": 1.0}}, 2.0)
    with pytest.raises(UserError, match="val_identities is 7 of 8 people in the training split: give 1 to 6"):
        main([str(config), "--rate_people", "7"])
    for wrong in ("0", "-1", "x"):
        with pytest.raises(UserError, match="rate_factors"):
            main([str(config), "--rate_factors", wrong])
