"""`export`: the content of both forms, and their use by the other commands."""

import json

import numpy as np
import pytest

from modeling_mllmreid.commands import embed, evaluate, export, search
from modeling_mllmreid.evaluation.threshold import Threshold, load_thresholds, save_thresholds
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.retrieval.embeddings import load_embeddings
from modeling_mllmreid.training.loading import load_encoder, load_model
from modeling_mllmreid.utils.errors import UserError


@pytest.fixture
def trained(disk, tmp_path):
    """A checkpoint with ID classifiers and thresholds of two features."""
    model, processor = load_model(ModelArguments(str(disk.ours)))
    model.set_num_identities(7)
    model.config.trained_on = ["market1501"]
    model.save_pretrained(tmp_path / "trained")
    processor.save_pretrained(tmp_path / "trained")
    threshold = Threshold(0.5, 0.4, 0.6, 0.01, 0.9, 10, 5, 20)
    save_thresholds(str(tmp_path / "trained"), {"llm": threshold, "vision": threshold})
    return tmp_path / "trained"


def embedded(model, disk, output, *flags):
    embed.main(["--model", str(model), "--images", str(disk.people / "query"), "--output", str(output), *flags])
    return load_embeddings(output).features


def test_the_vision_form_embeds_evaluates_and_searches_like_the_full_form(disk, trained, tmp_path, capsys):
    form = tmp_path / "vision"
    export.main(["--model", str(trained), "--to", "vision", "--output", str(form)])
    assert (
        f"vision, {sum(p.numel() for p in load_encoder(ModelArguments(str(form)))[0].parameters()):,} parameters"
        in (capsys.readouterr().out)
    )
    whole = embedded(trained, disk, tmp_path / "a", "--test_feature", "vision")
    np.testing.assert_allclose(embedded(form, disk, tmp_path / "b"), whole, atol=1e-6)
    assert list(load_thresholds(str(form))) == ["vision"]
    assert json.loads((form / "config.json").read_text())["trained_on"] == ["market1501"]
    market = ["--dataset", "market1501", "--data_dir", str(disk.people)]
    reports = []
    for name in (trained, form):
        output = tmp_path / f"of {name.name}"
        evaluate.main(["--model", str(name), *market, "--output_dir", str(output)])
        reports.append(json.loads((output / "metrics.json").read_text()))
    assert list(reports[1]["metrics"]) == ["vision"]
    assert reports[1]["metrics"]["vision"] == pytest.approx(reports[0]["metrics"]["vision"], abs=1e-9)
    query = str(next((disk.people / "query").iterdir()))
    search.main(["--query", query, "--embeddings", str(tmp_path / "b"), "--output", str(tmp_path / "sheet.png")])
    assert "threshold: 0.5000" in capsys.readouterr().out and (tmp_path / "sheet.png").is_file()


def test_the_full_form_leaves_out_the_templates_of_the_training_people(disk, trained, tmp_path):
    form = tmp_path / "full"
    export.main(["--model", str(trained), "--output", str(form)])
    model, _ = load_model(ModelArguments(str(form)))
    assert model.config.num_identities == 0 and not [name for name in model.state_dict() if "classifier" in name]
    assert set(load_thresholds(str(form))) == {"llm", "vision"}
    np.testing.assert_allclose(embedded(form, disk, tmp_path / "a"), embedded(trained, disk, tmp_path / "b"), atol=1e-6)


def test_no_path_of_this_machine_is_published(disk, tmp_path):
    model, processor = load_model(ModelArguments(str(disk.native)), {"height": 64, "width": 32})
    for part in (model, processor):
        part.save_pretrained(tmp_path / "ours")
    export.main(["--model", str(tmp_path / "ours"), "--to", "vision", "--output", str(tmp_path / "vision")])
    written = [path.read_text() for path in tmp_path.rglob("*.json")]
    assert len(written) >= 5 and not [text for text in written if str(disk.native.parent) in text]


def test_mistakes(disk, trained, tmp_path):
    form = tmp_path / "vision"
    export.main(["--model", str(trained), "--to", "vision", "--output", str(form)])
    market = ["--dataset", "market1501", "--data_dir", str(disk.people), "--output_dir", str(tmp_path / "out")]
    captions = ["--captions_file", str(disk.people / "reid_raw.json")]
    for command, flags, message in (
        (export.main, ["--model", str(trained), "--output", str(form)], "vision: exists and is not empty: remove"),
        (export.main, ["--model", str(form), "--to", "full", "--output", str(tmp_path / "x")], "has no language model"),
        (export.main, ["--model", str(trained), "--to", "thin", "--output", str(tmp_path / "x")], "names no backbone"),
        (export.main, ["--model", str(trained), "--onnx", "true", "--output", str(tmp_path / "x")], "add --to vision"),
        (export.main, ["--model", str(trained), "--backbone", "a/b", "--output", str(tmp_path / "x")], "leave it out"),
        (embed.main, ["--test_feature", "llm"], "test_feature is .llm.; give .vision."),
        (
            evaluate.main,
            [*market, *captions, "--text_queries", "true"],
            "text_queries: a vision form or an ONNX file reads",
        ),
    ):
        model = [] if command is export.main else ["--model", str(form)]
        if command is embed.main:
            flags = [*flags, "--images", str(disk.people / "query"), "--output", str(tmp_path / "y")]
        with pytest.raises(UserError, match=message):
            command([*model, *flags])
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("out",)) == ["trained", "vision"]
