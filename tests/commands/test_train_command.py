"""`train` from the command line on a tiny model: texts, training, the saved checkpoint, its evaluation."""

import json

import pytest

from modeling_mllmreid.commands import continuations, train
from modeling_mllmreid.commands.arguments import ModelArguments
from modeling_mllmreid.commands.loading import load_model
from modeling_mllmreid.errors import UserError


def test_train_saves_a_checkpoint_that_scores_what_was_reported(disk, tmp_path, capsys):
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


def test_train_names_the_text_that_is_missing(disk, tmp_path):
    data = ["--dataset", "market1501", "--data_dir", str(disk.people), "--texts", str(tmp_path / "texts.jsonl")]
    with pytest.raises(UserError, match="texts.jsonl: cannot be read"):
        train.main(["--model", str(disk.ours), *data, "--output_dir", str(tmp_path / "run"), "--use_cpu"])
