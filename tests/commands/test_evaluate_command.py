"""`evaluate` with all options, the comparison of two models, the matrix, and its errors."""

import json
import shutil
import sys

import numpy as np
import pytest
from datasets import DatasetDict
from PIL import Image

from modeling_mllmreid.commands import evaluate
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.evaluation import protocol
from modeling_mllmreid.evaluation.report import difference_lines
from modeling_mllmreid.evaluation.statistics import PairedDifference
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.utils.errors import UserError


@pytest.fixture(scope="module")
def flags(disk):
    return ["--dataset", "market1501", "--data_dir", str(disk.people)]


@pytest.mark.parametrize("devices", [("cuda",), ("cpu",)])
def test_all_options_at_once(disk, flags, tmp_path, capsys, monkeypatch, devices):
    """With the gallery's features as arrays, and as a tensor, as if this were the device of a GPU."""
    monkeypatch.setattr(protocol, "EXACT_DEVICES", devices)
    output = tmp_path / "out"
    wanted = ("rerank", "expand", "single_shot", "text_queries", "verification", "plots", "flip_test")
    options = [word for name in wanted for word in (f"--{name}", "true")]
    captions = ["--captions_file", str(disk.people / "reid_raw.json")]
    evaluate.main(["--model", str(disk.ours), *flags, *captions, *options, "--output_dir", str(output)])
    printed = capsys.readouterr().out
    report = json.loads((output / "metrics.json").read_text())
    names = ["llm", "vision", "concat", "llm, re-ranked", "llm, expanded", "text", "image and text"]
    assert list(report["metrics"]) == list(report["intervals"]) == names
    assert all(f"\n{name} " in printed for name in names)
    captions_of_queries = report["metrics"]["text"]["num_queries"]
    assert captions_of_queries == report["metrics"]["image and text"]["num_queries"] == 12  # two for each of 6 queries
    for name, row in report["intervals"].items():
        assert row["mAP"]["low"] <= row["mAP"]["estimate"] <= row["mAP"]["high"]
        assert row["mAP"]["estimate"] == pytest.approx(report["metrics"][name]["mAP"])
    assert "trained without reid_text" in printed and "in brackets" in printed.lower()
    assert list(report["by_query_camera"]) == ["1", "2"] and "by query camera, llm" in printed
    assert sum(row["num_queries"] for row in report["by_query_camera"].values()) == 6
    assert report["verification"]["num_genuine"] == 6 and 0 <= report["verification"]["eer"] <= 1
    assert report["verification"]["tpr_at_fpr"] == {"0.001": None, "0.0001": None}  # 24 impostor pairs measure no such
    assert "TPR - at FPR 0.001" in printed and report["open_set"]["num_non_mated"] == 6
    assert (
        list(report["single_shot_cmc"]) == ["rank1", "rank5", "rank10"] and "single gallery shot, 10 draws" in printed
    )
    # One gallery image of each person remains, so the random selection has one result.
    assert report["single_shot_cmc"]["rank5"] == 1 and report["single_shot_cmc"]["rank1"] <= 1
    assert report["flip_test"] and report["trained_on"] == [] and report["tested_on"] == ["market1501"]
    for name in ("sheet", "curves", "worst", "roc"):
        assert f"{output / name}.png" in printed and Image.open(output / f"{name}.png").width > 400


@pytest.mark.parametrize("spelling", ["model", "compare alone"])
def test_compare_on_the_same_queries(disk, flags, tmp_path, capsys, spelling):
    (tmp_path / "other").symlink_to(disk.ours)
    names = [str(disk.ours), str(tmp_path / "other")]
    models = ["--model", names[0], "--compare", names[1]] if spelling == "model" else ["--compare", *names]
    evaluate.main([*models, *flags, "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    same = report["compare"][names[1]]["mAP"]
    assert (same["difference"], same["low"], same["high"], same["p_value"]) == (0, 0, 0, 1)
    assert f"{names[0]} less {names[1]}, same queries" in printed and "p = 1.0000" in printed


def test_compare_another_model(disk, flags, tmp_path, capsys):
    other = MllmReIDModel.from_pretrained(disk.ours)
    other.config.test_feature = "vision"
    other.save_pretrained(tmp_path / "other")
    for name in ("processor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "other" / name).write_bytes((disk.ours / name).read_bytes())
    evaluate.main(["--compare", str(disk.ours), str(tmp_path / "other"), *flags, "--output_dir", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    (difference,) = report["compare"].values()
    metrics = report["metrics"]
    assert difference["mAP"]["difference"] == pytest.approx(metrics["llm"]["mAP"] - metrics["vision"]["mAP"], abs=1e-9)


def test_matrix_of_earlier_reports(disk, flags, tmp_path, capsys):
    evaluate.main(["--model", str(disk.ours), *flags, "--output_dir", str(tmp_path / "out")])
    capsys.readouterr()
    evaluate.main(["--matrix", str(tmp_path / "out/metrics.json"), "--output_dir", str(tmp_path / "all")])
    printed = capsys.readouterr().out
    matrix = json.loads((tmp_path / "all/matrix.json").read_text())
    assert list(matrix) == ["nothing"] and list(matrix["nothing"]) == ["market1501"]
    assert "trained on \\ tested on" in printed and str(tmp_path / "all/matrix.json") in printed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "evaluate: model is not given: add --model, or --compare with two checkpoints"),
        (["--compare", "OURS"], "alone: give the other model too, or --model in its place"),
        (["--compare", "/absent/model", "/other"], "model /absent/model: not loadable"),
        (["--model", "OURS", "--text_queries", "true"], "text_queries: the query split has no captions"),
        (["--model", "OURS", "--exclude", "caption"], "exclude: unknown column 'caption': use camera_id, clothes_id"),
        (["--model", "OURS", "--compare", "/absent/model"], "model /absent/model: not loadable"),
    ],
)
def test_a_mistake_writes_no_file(disk, flags, tmp_path, more, message):
    more = [str(disk.ours) if word == "OURS" else word for word in more]
    with pytest.raises(UserError) as error:
        evaluate.main([*more, *flags, "--output_dir", str(tmp_path / "out")])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_tracks_and_clothes(disk, tmp_path):
    """A saved data set with these columns: a track is one gallery entry, and images in the same clothes are dropped."""
    dataset = load_reid_dataset("market1501", data_dir=disk.people)
    gallery = dataset["gallery"]
    persons = gallery["person_id"][:]
    gallery = gallery.add_column("track_id", persons).add_column("clothes_id", [int(p == persons[0]) for p in persons])
    query = dataset["query"].add_column("track_id", [-1] * 6).add_column("clothes_id", [1] * 6)
    DatasetDict(query=query, gallery=gallery).save_to_disk(tmp_path / "saved")
    flags = ["--model", str(disk.ours), "--dataset", str(tmp_path / "saved"), "--output_dir", str(tmp_path / "out")]
    evaluate.main([*flags, "--pool_tracks", "true", "--exclude", "clothes_id"])
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    assert report["gallery_images"] == 3 < len(gallery) and report["query_images"] == 6
    assert report["exclude"] == ["clothes_id"] and report["pool_tracks"]
    # Every gallery image of the person in the same clothes as in the queries is dropped.
    asking = query["person_id"][:].count(persons[0])
    assert report["metrics"]["llm"]["num_valid"] == 6 - asking < 6
    plain = ["--dataset", "market1501", "--data_dir", str(disk.people)]
    with pytest.raises(UserError, match="exclude: the query split has no column clothes_id"):
        evaluate.main(["--model", str(disk.ours), *plain, "--exclude", "clothes_id"])
    with pytest.raises(UserError, match="pool_tracks: the data set has no column track_id"):
        evaluate.main(["--model", str(disk.ours), *plain, "--pool_tracks", "true"])


def test_pictures_without_matplotlib_are_refused_before_the_work(disk, flags, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="pictures need matplotlib"):
        evaluate.main(["--model", "/absent", *flags, "--plots", "true", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_ten_splits_are_averaged(disk, tmp_path, capsys):
    """Noise images in VIPeR's layout: the mean equals that of the splits evaluated one by one."""
    rng = np.random.default_rng(0)
    for camera, angle in (("cam_a", 0), ("cam_b", 90)):
        folder = tmp_path / "viper" / camera
        folder.mkdir(parents=True)
        for person in range(16):
            pixels = rng.integers(0, 256, (64, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{person:03d}_{angle}.bmp")
    flags = ["--model", str(disk.ours), "--dataset", "viper", "--data_dir", str(tmp_path / "viper")]
    evaluate.main([*flags, "--splits", "3", "--output_dir", str(tmp_path / "all")])
    assert "mean and standard deviation over 3 random splits" in capsys.readouterr().out
    report = json.loads((tmp_path / "all/metrics.json").read_text())
    single = []
    for split in range(3):
        evaluate.main([*flags, "--split", str(split), "--output_dir", str(tmp_path / "one")])
        single.append(json.loads((tmp_path / "one/metrics.json").read_text())["metrics"]["llm"]["mAP"])
    averaged = report["metrics_over_splits"]["llm"]["mAP"]
    assert averaged["mean"] == pytest.approx(sum(single) / 3) and len(set(single)) > 1
    with pytest.raises(UserError, match="splits: only for viper, prid, grid and ilids"):
        evaluate.main([*flags, "--splits", "3", "--split", "0"])


def test_results_do_not_replace_the_files_of_others(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "load_reid_dataset", lambda *_, **__: pytest.fail("the work began"))
    settings = ["--model", str(disk.ours), "--dataset", "market1501", "--data_dir", str(disk.people)]
    for name in ("metrics.json", "sheet.png"):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / name).write_text("my own notes")
        with pytest.raises(UserError, match=f"{name}: exists and was not written by this program"):
            evaluate.main([*settings, "--output_dir", str(tmp_path / "out")])
        assert (tmp_path / "out" / name).read_text() == "my own notes"
        (tmp_path / "out" / name).unlink()
    (tmp_path / "report.json").write_text("{}")
    (tmp_path / "out" / "matrix.json").symlink_to(tmp_path / "report.json")
    with pytest.raises(UserError, match="matrix.json: is a symbolic link"):
        evaluate.main(["--matrix", str(tmp_path / "report.json"), "--output_dir", str(tmp_path / "out")])
    assert (tmp_path / "report.json").read_text() == "{}"


def test_differences_in_points_with_their_interval_and_p():
    sure, unsure = PairedDifference(0.1, 0.05, 0.15, 0.95, 1e-9), PairedDifference(-0.021, -0.05, 0.01, 0.95, 0.0512)
    lines = difference_lines({"mAP": sure, "rank1": unsure}).splitlines()
    assert lines == ["  mAP      +10.0 [+5.0, +15.0]  p < 0.0001", "  rank1     -2.1 [-5.0, +1.0]  p = 0.0512"]


def test_reports_of_another_model_stay(disk, tmp_path):
    shutil.copytree(disk.ours, tmp_path / "other")
    flags = ["--model", str(disk.ours), "--dataset", "market1501", "--data_dir", str(disk.people)]
    with pytest.raises(UserError, match="output_dir .*other: holds another model and its reports: give another folder"):
        evaluate.main([*flags, "--output_dir", str(tmp_path / "other")])
