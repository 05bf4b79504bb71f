"""`train` from the command line on a tiny model: texts, training, the saved checkpoint, its evaluation."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest

from modeling_mllmreid.commands import continuations, evaluate, train
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.training.loading import load_model
from modeling_mllmreid.utils.errors import UserError


def test_train_saves_a_checkpoint_with_the_reported_metrics(disk, tmp_path, capsys):
    data = ["--dataset", "market1501", "--data_dir", str(disk.people)]
    data += ["--captions_file", str(disk.people / "reid_raw.json")]
    texts, output = tmp_path / "texts.jsonl", tmp_path / "run"
    continuations.main(["--model", str(disk.native), *data, "--output", str(texts), "--max_new_tokens", "4"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {disk.native}\ntexts: {texts}\noutput_dir: {output}\nheight: 64\nwidth: 32\nloss_lambda: 0.6\n"
        "identities_per_batch: 2\nimages_per_identity: 2\nmax_steps: 2\neval_strategy: 'no'\nsave_strategy: 'no'\n"
        "learning_rates:\n  reid_head: 1e-3\nuse_cpu: true\ndisable_tqdm: true\n"
    )
    train.main([str(recipe), *data, "--loss_lambda", "0.5"])
    printed = capsys.readouterr().out
    assert f"checkpoint: {output}" in printed and "Rank-1" in printed
    report = json.loads((output / "metrics.json").read_text())
    assert report["metrics"]["llm"]["num_queries"] == 6 and (output / "sheet.png").is_file()
    model, processor = load_model(ModelArguments(str(output)))
    assert (model.config.loss_lambda, model.config.height, processor.width) == (0.5, 64, 32)
    assert model.config.num_identities == 2
    # One process used the CPU only, on any machine; nothing was quantised.
    hardware = json.loads((output / "run.json").read_text())["hardware"]
    assert re.fullmatch(r"\d+ CPU cores \(\S+\), \d+ threads", hardware) and report["quantize"] is None


def test_train_names_the_text_that_is_missing(disk, tmp_path):
    data = ["--dataset", "market1501", "--data_dir", str(disk.people), "--texts", str(tmp_path / "texts.jsonl")]
    with pytest.raises(UserError, match="texts.jsonl: cannot be read"):
        train.main(["--model", str(disk.ours), *data, "--output_dir", str(tmp_path / "run"), "--use_cpu"])


@pytest.mark.parametrize(("dtype", "other"), [("float16", "bf16"), ("fp16", "bf16"), ("bf16", "fp16")])
def test_weights_and_training_in_different_16_bit_formats_are_refused(dtype, other):
    settings = SimpleNamespace(bf16=other == "bf16", fp16=other == "fp16")
    with pytest.raises(UserError, match=f"^{other}: the weights are in {dtype}: set dtype to"):
        train.refuse_mixed_formats(ModelArguments("any", dtype=dtype), settings)
    train.refuse_mixed_formats(ModelArguments("any"), settings)


def test_training_on_test_people_of_a_target_is_refused_or_recorded(disk, tmp_path, capsys):
    data = ["--dataset", "market1501", "--data_dir", str(disk.people), "--targets", "cuhk_pedes"]
    flags = ["--model", str(disk.ours), *data, "--output_dir", str(tmp_path / "run"), "--use_cpu", "true"]
    with pytest.raises(UserError, match="leak: market1501 and cuhk_pedes share images of market1501: leave out"):
        train.main(flags)
    assert not (tmp_path / "run").exists()
    sizes = ["--identities_per_batch", "2", "--images_per_identity", "2", "--max_steps", "1"]
    quiet = ["--eval_strategy", "no", "--save_strategy", "no", "--loss_lambda", "1", "--disable_tqdm", "true"]
    train.main([*flags, "--allow_overlap", "true", "--licence", "MIT", *sizes, *quiet])
    config = load_model(ModelArguments(str(tmp_path / "run")))[0].config
    assert config.trained_on == ["market1501"] and config.base_licence == "mit"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["published_counts"] == {"market1501": False}
    assert config.overlap == ["market1501 and cuhk_pedes share images of market1501"]
    capsys.readouterr()
    config.trained_on = ["cuhk_pedes"]
    config.save_pretrained(tmp_path / "run")
    evaluate.main(["--model", str(tmp_path / "run"), *data[:4], "--output_dir", str(tmp_path / "out")])
    assert "warning: cuhk_pedes and market1501 share images of market1501" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/metrics.json").read_text())["overlap"]


def test_a_thin_checkpoint_of_the_commands_loads_from_any_folder(disk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(disk.native.parent)
    data = ["--dataset", "market1501", "--data_dir", str(disk.people), "--output_dir", str(tmp_path / "run")]
    sizes = (
        "--height 64 --width 32 --language_model lora --lora_rank 2 --identities_per_batch 2 --images_per_identity 2"
    )
    quiet = "--max_steps 1 --eval_strategy no --save_strategy no --loss_lambda 1 --use_cpu true --disable_tqdm true"
    train.main(["--model", disk.native.name, *data, *sizes.split(), *quiet.split()])
    monkeypatch.chdir(tmp_path)
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["backbone"] == str(disk.native) and config["adapter"] == "adapter"
    capsys.readouterr()
    evaluate.main(["--model", "run", *data[:4], "--output_dir", "out"])
    first, again = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("run", "out"))
    assert first["metrics"] == again["metrics"] and first["weights"] == again["weights"] != ""
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["weights"] == first["weights"] and record["adapters"]["lora_rank"] == 2
    assert record["data"]["train"] == {"images": 8, "persons": 2}


def test_training_does_not_overwrite_another_model_or_its_inputs(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "load_reid_dataset", lambda *_, **__: pytest.fail("the work began"))
    settings = ["--model", str(disk.native), "--dataset", "market1501", "--data_dir", str(disk.people)]
    other = tmp_path / "other"
    shutil.copytree(disk.native, other)
    (tmp_path / "weights").mkdir()
    shutil.copy(next(disk.native.glob("*.safetensors")), tmp_path / "weights")
    (tmp_path / "report").mkdir()
    (tmp_path / "link").symlink_to(disk.people)
    (tmp_path / "report" / "metrics.json").write_text("my own notes")
    for folder, message in (
        (disk.native, "is also an input"),
        (disk.people, "is also an input"),
        (other, "config.json: exists and was not written by this program"),
        (tmp_path / "weights", "holds .*safetensors, which no training wrote"),
        (tmp_path / "report", "metrics.json: exists and was not written by this program"),
        # Its files would be read as people.
        (disk.people / "run", "run: is inside .*people, an input: give a folder outside of it"),
        (tmp_path / "link" / "query" / "run", "run: is inside .*people, an input"),
    ):
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(UserError, match=message):
            train.main([*settings, "--output_dir", str(folder), "--use_cpu", "true", "--eval_strategy", "no"])
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_earlier_run_inside_the_data_continues_and_the_run_may_contain_the_data(disk, tmp_path):
    data, run = tmp_path / "all", tmp_path / "all" / "run"
    shutil.copytree(disk.people, data / "people")
    with pytest.raises(UserError, match="is inside"):
        train.check_output_dir(run, "a/b", [str(data)])
    shutil.copytree(disk.ours, run)
    train.check_output_dir(run, "a/b", [str(data)])
    # As in the demo.
    train.check_output_dir(tmp_path / "new", "a/b", [str(tmp_path / "new" / "pedestrians")])
    shutil.copytree(disk.ours, tmp_path / "ours")
    train.check_output_dir(tmp_path / "ours", "a/b", [str(tmp_path / "ours" / "pedestrians")])
    assert not (tmp_path / "new").exists()
