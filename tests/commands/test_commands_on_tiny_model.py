"""The commands of data and evaluation end to end on a tiny model: their output, files and errors."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from refusals import one_line

from modeling_mllmreid.commands import continuations, data, evaluate, prepare
from modeling_mllmreid.data.captions import read_records
from modeling_mllmreid.data.contract import image_sources
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.evaluation.metrics import evaluate_retrieval
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.training.loading import load_model
from modeling_mllmreid.utils.errors import UserError

MARKET = ["--dataset", "market1501", "--data_dir"]


def test_evaluate_reports_the_metrics_of_each_feature(disk, tmp_path, capsys):
    output = tmp_path / "out"
    flags = ["--model", str(disk.ours), *MARKET, str(disk.people), "--output_dir", str(output), "--histogram", "true"]
    evaluate.main(flags)
    printed = capsys.readouterr().out
    report = json.loads((output / "metrics.json").read_text())
    assert list(report["metrics"]) == ["llm", "vision", "concat", "histogram"]
    assert all(f"\n{name} " in printed for name in report["metrics"])
    assert str(output / "metrics.json") in printed and str(output / "sheet.png") in printed
    assert (report["query_images"], report["gallery_images"], report["test_feature"]) == (6, 6, "llm")
    assert Image.open(output / "sheet.png").height > 6 * 192

    # Recompute with the public functions, one image at a time.
    model, processor = load_model(ModelArguments(str(disk.ours)))
    model.eval()
    parts = [load_reid_dataset("market1501", data_dir=disk.people)[name] for name in ("query", "gallery")]
    features = [
        np.concatenate(
            [model.encode_images(processor(images=path)["pixel_values"]).detach() for path in image_sources(p)]
        )
        for p in parts
    ]
    ids = [part[column][:] for column in ("person_id", "camera_id") for part in parts]
    assert report["metrics"]["llm"] == pytest.approx(evaluate_retrieval(*features, *ids).to_dict(), abs=1e-9)


@pytest.mark.parametrize("kind", ["native", "ours"])
def test_evaluate_works_without_a_train_split_and_with_other_sizes(disk, tmp_path, kind):
    shutil.copytree(disk.people, tmp_path / "people", ignore=shutil.ignore_patterns("bounding_box_train", "*.json"))
    flags = [
        "--model",
        str(getattr(disk, kind)),
        *MARKET,
        str(tmp_path / "people"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    evaluate.main([*flags, "--height", "32", "--width", "32", "--test_feature", "vision"])
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    assert (report["height"], report["width"], report["test_feature"]) == (32, 32, "vision")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "/absent/model"], "model /absent/model: not loadable: no such folder, and not from the Hub ("),
        (["--llm_layer", "99"], "llm_layer"),
        (["--height", "50"], "both must be multiples of 16, the pixels of an image token's side: give 48 x 32"),
        (["--batch_size", "0"], "batch_size 0, num_workers 0: give at least 1"),
        (["--dataset", "market"], "did you mean 'market1501'?"),
    ],
)
def test_evaluate_refuses_in_one_line(disk, tmp_path, flags, message):
    base = ["--model", str(disk.ours), *MARKET, str(disk.people), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError) as error:
        evaluate.main([*base, *flags])
    assert message in one_line(error)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "question"), [("ourz", " (did you mean '{}'?)"), ("another", "")])
def test_a_wrong_folder_gets_the_most_similar_name(disk, tmp_path, caplog, name, question):
    flags = ["--model", str(disk.ours.with_name(name)), *MARKET, str(disk.people), "--output_dir", str(tmp_path)]
    with pytest.raises(UserError) as error:
        evaluate.main(flags)
    asked = question.format(disk.ours)
    assert f"{name}: not loadable: no such folder{asked}, and not from the Hub (" in one_line(error)
    # Said before the Hub is asked, which takes long without network.
    assert (f"{name}: no such folder{asked}: asking the Hub" in caplog.text) == bool(question)


def test_evaluate_names_a_broken_image_and_writes_nothing(disk, broken_people, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(UserError, match="0001_c2s1_000001_00.jpg: broken image"):
        evaluate.main(["--model", str(disk.ours), *MARKET, str(broken_people), "--output_dir", str(output)])
    assert not output.exists()


def test_continuations_are_written_for_training_captions_only_and_joined(disk, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    data = [*MARKET, str(disk.people), "--captions_file", str(disk.people / "reid_raw.json")]
    flags = ["--model", str(disk.native), *data, "--output", str(texts), "--max_new_tokens", "4"]
    continuations.main(flags)
    assert capsys.readouterr().out == f"16 continuations written: {texts}\n"
    assert {record.split for record in read_records(texts)} == {"train"}
    continuations.main(flags)
    assert capsys.readouterr().out == f"0 continuations written: {texts}\n"

    options = {"data_dir": disk.people, "captions_file": disk.people / "reid_raw.json", "texts": texts}
    train = load_reid_dataset("market1501", **options)["train"]
    assert all(len(row["continuation"]) == len(row["caption"]) == 2 for row in train)


def test_continuations_refuse_a_fine_tuned_model_and_data_without_captions(disk, tmp_path):
    data = [*MARKET, str(disk.people)]
    captions = ["--captions_file", str(disk.people / "reid_raw.json")]
    for flags, message in (
        (["--model", str(disk.ours), *data, *captions], "give the native model"),
        (["--model", str(disk.native), *data], "no training image has a caption"),
    ):
        with pytest.raises(UserError, match=message):
            continuations.main([*flags, "--output", str(tmp_path / "texts.jsonl")])
    assert not (tmp_path / "texts.jsonl").exists()


def test_data_summarises_a_data_set_on_one_screen(disk, tmp_path, capsys):
    captions = ["--captions_file", str(disk.people / "reid_raw.json")]
    data.main([*MARKET, str(disk.people), *captions, "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "market1501: " in printed and "not the published Market-1501: train has 8 samples, not 12,936" in printed
    assert len(printed.splitlines()) < 25 and "0 broken images" in printed and "0 images with copies" in printed
    report = json.loads((tmp_path / "out/data.json").read_text())
    assert report["parts"]["train"]["images"] == 8 and report["parts"]["train"]["captions"] == 16
    assert Image.open(tmp_path / "out/sheet.png").width > 300
    data.main([*MARKET, str(disk.people), "--images", "false", "--output_dir", str(tmp_path / "quick")])
    assert [path.name for path in (tmp_path / "quick").iterdir()] == ["data.json"]


def test_data_lists_broken_images(broken_people, tmp_path, capsys):
    data.main([*MARKET, str(broken_people), "--output_dir", str(tmp_path / "out")])
    assert "1 broken images" in capsys.readouterr().out and not (tmp_path / "out/sheet.png").exists()
    (broken,) = json.loads((tmp_path / "out/data.json").read_text())["broken_images"]
    assert "0001_c2s1_000001_00.jpg: broken image" in broken


def test_prepared_data_trains_and_evaluates_like_the_original(disk, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    prepare.main([*MARKET, str(disk.people), "--output", str(tmp_path / "prepared")])
    assert "20 images in train, query, gallery" in capsys.readouterr().out
    scores = []
    for data_flags in ([*MARKET, str(disk.people)], ["--dataset", str(tmp_path / "prepared")]):
        evaluate.main(["--model", str(disk.ours), *data_flags, "--output_dir", str(tmp_path / "out")])
        scores.append(json.loads((tmp_path / "out/metrics.json").read_text())["metrics"])
    assert scores[0] == scores[1]
    with pytest.raises(UserError, match="prepared: exists and is not empty: remove it or give another"):
        prepare.main([*MARKET, str(disk.people), "--output", str(tmp_path / "prepared")])
    with pytest.raises(UserError, match="push_to needs the images in the tables: leave embed true"):
        prepare.main([*MARKET, "x", "--output", str(tmp_path / "p"), "--embed", "false", "--push_to", "a/b"])


def test_strict_data_refuses_counts_other_than_the_published_ones(disk, tmp_path, capsys):
    flags = [*MARKET, str(disk.people), "--images", "false", "--output_dir", str(tmp_path / "data")]
    data.main(flags)
    assert "published" in capsys.readouterr().out
    with pytest.raises(UserError, match="published"):
        data.main([*flags, "--strict", "true"])
