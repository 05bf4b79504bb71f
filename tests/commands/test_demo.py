"""A demo of a few seconds: its steps, its files, and the sizes that it refuses."""

import json

import pytest
import torch
from huggingface_hub import ModelCard

from modeling_mllmreid.commands import evaluate, export
from modeling_mllmreid.commands.demo import main
from modeling_mllmreid.evaluation.threshold import load_thresholds
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.research import demo
from modeling_mllmreid.research.tiny_llava import pretrain_tiny
from modeling_mllmreid.retrieval.embeddings import weights_digest
from modeling_mllmreid.synthetic.worlds import NOBODY_ALIKE
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.training.trainer import ReIDTrainer
from modeling_mllmreid.utils.errors import UserError

SMALL = {
    "train_identities": 10,
    "test_identities": 4,
    "images_per_camera": 2,
    "cameras": 2,
    "scenes": 3,
    "height": 64,
    "width": 32,
    "hidden_size": 32,
    "tower_layers": 1,
    "lm_layers": 1,
    "pretraining_people": 50,
    "pretraining_steps": 3,
    "identities_per_batch": 3,
    "images_per_identity": 2,
    "val_identities": 3,
    "max_steps": 4,
    "eval_steps": 2,
    "save_steps": 2,
    "warmup_steps": 1,
    "logging_steps": 2,
    "dataloader_num_workers": 0,
}


def flags(folder) -> list[str]:
    return [f"--{name}={value}" for name, value in {**SMALL, "output_dir": folder}.items()]


def test_the_fusion_is_that_of_the_chosen_feature(tmp_path, monkeypatch):
    measure = ReIDTrainer.evaluate
    monkeypatch.setattr(
        ReIDTrainer, "evaluate", lambda self, **options: measure(self, **options) | {"eval_concat_mAP": 2.0}
    )
    threads = torch.get_num_threads()
    sizes = {"train_identities": 20, "val_identities": 12, "pair_weight": 1}
    main([*flags(tmp_path / "demo"), *(f"--{name}={value}" for name, value in sizes.items())])
    torch.set_num_threads(threads)
    thresholds = load_thresholds(str(tmp_path / "demo"))
    assert [name for name, threshold in thresholds.items() if threshold.fusion is not None] == ["concat"]
    assert MllmReIDModel.from_pretrained(tmp_path / "demo").config.test_feature == "concat"


def test_the_demo_runs_every_step(tmp_path, capsys, monkeypatch):
    def check_and_pretrain(mllm, *args, **options):
        # A language model that sees the next token would learn nothing in its pretraining.
        ids = torch.arange(6)[None]
        changed = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
        states = [mllm.model.language_model(input_ids=batch).last_hidden_state[:, :-1] for batch in (ids, changed)]
        torch.testing.assert_close(*states, rtol=0, atol=1e-6)
        return pretrain_tiny(mllm, *args, **options)

    monkeypatch.setattr(demo, "pretrain_tiny", check_and_pretrain)
    threads = torch.get_num_threads()
    others = {"test_identities": 3, "images_per_camera": 2, "cameras": 2, "scenes": 2, "size": (64, 32)}
    write_pedestrians(tmp_path / "others", seed=7, train_identities=0, **others)
    main([*flags(tmp_path / "demo"), "--also_evaluate", str(tmp_path / "others")])
    torch.set_num_threads(threads)
    report = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert set(report["test"]) >= {"llm", "vision", "concat", "colour histogram"}
    assert report["test_identities"] == 4 and report["reload_difference"] < 1e-6
    assert 0 <= report["kept_attribute_words"] <= 1
    assert report["language"]["own_image"] > 0 and report["language"]["other_image"] > 0
    assert report["chosen_feature"] == max(report["val"], key=report["val"].get)
    assert {"lm_image", "lm_text", "id_llm", "triplet_vision"} <= report["training"][0].keys()
    checkpoint = MllmReIDModel.from_pretrained(tmp_path / "demo")
    assert checkpoint.config.test_feature == report["chosen_feature"]
    printed = capsys.readouterr().out
    assert str(tmp_path / "demo" / "sheet.png") in printed and (tmp_path / "demo" / "sheet.png").is_file()

    also = report["also_evaluated"]
    ours, histogram = also["test"][report["chosen_feature"]], also["test"]["colour histogram"]
    difference, interval = also["less_histogram"]["mAP"], also["intervals"]["colour histogram"]["mAP"]
    assert difference["difference"] == pytest.approx(ours["mAP"] - histogram["mAP"])
    assert difference["low"] < difference["difference"] < difference["high"]
    assert interval["low"] < histogram["mAP"] < interval["high"] and interval["confidence"] == 0.95
    assert f"{tmp_path / 'others'}: 3 people" in printed and "less colour histogram, same queries" in printed

    # The card names the people, the weights, the licence and the machine.
    record = json.loads((tmp_path / "demo" / "run.json").read_text())
    assert record["weights"] == weights_digest(tmp_path / "demo") and record["sources"] == ["rendered_pedestrians"]
    assert record["texts"][0]["licence"] == "apache-2.0" and record["seconds"] > 0
    assert (checkpoint.config.trained_on, checkpoint.config.base_licence) == (["rendered_pedestrians"], "apache-2.0")
    people = ["--dataset", "market1501", "--data_dir", str(tmp_path / "demo" / "pedestrians")]
    model = ["--model", str(tmp_path / "demo")]
    evaluate.main([*model, *people, "--output_dir", str(tmp_path / "demo")])
    export.main([*model, "--output", str(tmp_path / "export")])
    card = (tmp_path / "export" / "README.md").read_text()
    data = ModelCard(card).data
    assert (data.license, data.datasets) == ("apache-2.0", ["rendered_pedestrians"])
    assert {result.dataset_name for result in data.eval_results} == {
        "rendered_pedestrians, 8 query and 8 gallery images"
    }
    for wrong in ("market1501", "llama2", "Llama 2", "**Hardware**: not", "**Time**: not", "**Environment**: not"):
        assert wrong not in card
    assert not (tmp_path / "export" / "NOTICE").exists()
    assert "CPU cores" in card and "continuations by `the demo's own language model`, licence apache-2.0" in card


def test_the_demo_refuses_a_folder_that_is_not_empty(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="exists and is not empty: remove it or give another"):
        main(flags(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--patch_size", "5"],
            "demo: height x width is 64 x 32; both must be multiples of 5, the pixels of an image token's side",
        ),
        (["--llm_layer", "50"], "demo: llm_layer is 50; of 1 layers"),
        (["--cameras", "1"], "cameras: 1: is out of range: give a number at least 2"),
        (["--pretraining_steps", "0"], "pretraining_steps: 0: is out of range"),
        (["--hidden_size", "9"], "hidden_size 9: give a multiple of 8"),
        (["--also_evaluate", "absent"], "also_evaluate: absent: no such folder"),
        (["--output_dir", "/dev/null"], "output /dev/null: is a file, not a folder"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_the_first_step(tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        main([*flags(tmp_path / "demo"), *more])
    assert not (tmp_path / "demo").exists()


def test_the_world_has_the_look_alikes_that_are_asked_for():
    assert [demo.DemoArguments(look_alikes=count).rendered()["crowd"].copies for count in (0, 4)] == [0, 4]
    assert demo.DemoArguments().rendered()["crowd"] == NOBODY_ALIKE
