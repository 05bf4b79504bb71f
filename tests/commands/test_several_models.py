"""`evaluate --verify_top N --verify_with B C`: the order of the mean log odds by hand, with fusions and without."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_training import train_tiny, world_of

from modeling_mllmreid.commands import evaluate
from modeling_mllmreid.data.contract import image_sources
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.evaluation.metrics import metrics_from_blocks
from modeling_mllmreid.evaluation.pair_fusion import PairFusion
from modeling_mllmreid.evaluation.pair_scores import score_shortlist
from modeling_mllmreid.evaluation.protocol import protocol_features
from modeling_mllmreid.evaluation.threshold import load_thresholds, save_thresholds
from modeling_mllmreid.model.processing_mllmreid import PAIR_ANSWERS, PAIR_QUESTION
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.training.embedder import load_embedder
from modeling_mllmreid.utils.errors import UserError

SMALL = ModelArguments("pedestrians-small").model
THRESHOLD = load_thresholds(SMALL)["vision"]
CALIBRATION = THRESHOLD.calibration
# The scores of a barely trained model are near each other, and are to count as much as the distances.
FUSION = PairFusion(0.5, -12.0, 200.0, 0.5, 0.4, 0.6, 12, 100, 4, 24, 0.2, 0.02)
TOP = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A world, and a tiny model in two forms: `pairs` has a fusion, `distance` a calibration alone."""
    root = tmp_path_factory.mktemp("several")
    write_pedestrians(root / "people", train_identities=8, test_identities=5, images_per_camera=2, cameras=2)
    words = (*PAIR_ANSWERS, PAIR_QUESTION)
    train_tiny(root, world_of(root / "people"), max_steps=2, model={"pair_weight": 1.0}, words=words)
    steep = replace(CALIBRATION, distances=(0.0, 0.3, 0.6), log_ratios=(9.0, 1.0, -6.0), people=11)
    stored = {"pairs": {"fusion": FUSION}, "distance": {"calibration": steep}, "neither": {}}
    for name, values in stored.items():
        shutil.copytree(root / "run", root / name)
        kept = replace(THRESHOLD, **{"fusion": None, "calibration": None, **values})
        save_thresholds(root / name, {"llm": kept})
    config = json.loads((root / "distance/config.json").read_text())
    (root / "distance/config.json").write_text(json.dumps({**config, "trained_on": ["market1501:all"]}))
    flags = ["--dataset", "market1501", "--data_dir", str(root / "people"), "--verify_top", str(TOP)]
    data = load_reid_dataset("market1501", data_dir=root / "people")
    return SimpleNamespace(root=root, flags=flags, data=data, **{name: str(root / name) for name in stored})


def run(models, output: Path, model: str, *others: str) -> dict:
    evaluate.main(["--model", model, *models.flags, "--verify_with", *others, "--output_dir", str(output)])
    return json.loads((output / "metrics.json").read_text())


def embedded(models, name: str):
    """The features of a model and its distances (Q, G), the plain way."""
    model, processor = load_embedder(ModelArguments(name))
    features = protocol_features(model, processor, models.data, progress=False)
    query, gallery = (side[model.config.test_feature].astype(np.float64) for side in (features.query, features.gallery))
    return SimpleNamespace(model=model, processor=processor, features=features, distances=1 - query @ gallery.T)


def nearest(first) -> np.ndarray:
    """The shortlist (Q, N) of a model: the nearest images without those of the query's person and camera."""
    rule, rows = first.features.rule, []
    for number, distances in enumerate(first.distances):
        images, dropped = rule.gallery_images(number)
        rows.append(np.argsort(np.where(np.isin(np.arange(len(distances)), images[dropped]), np.inf, distances))[:TOP])
    return np.array(rows)


def by_fusion(judge, listed: np.ndarray) -> np.ndarray:
    sources = [image_sources(split) for split in (judge.features.query_split, judge.features.gallery_split)]
    scores, _ = score_shortlist(judge.model, judge.processor, *sources, listed, progress=False)
    distances = np.take_along_axis(judge.distances, listed, axis=1)
    return FUSION.distance * distances + FUSION.score * scores  # its constant does not change the order


def by_calibration(judge, listed: np.ndarray, calibration) -> np.ndarray:
    distances = np.take_along_axis(judge.distances, listed, axis=1)
    return np.interp(distances, calibration.distances, calibration.log_ratios)


def expected(first, listed: np.ndarray, odds: np.ndarray) -> dict:
    """The metrics of the ranking whose shortlists are in the order of these log odds, all others behind them."""
    places = first.distances + 10
    for row, images, own in zip(places, listed, odds, strict=True):
        row[images[np.argsort(-own)]] = np.arange(TOP)
    return metrics_from_blocks([(slice(0, len(places)), places.astype(np.float32))], first.features.rule).to_dict()


def test_the_order_is_that_of_the_mean_log_odds(models, tmp_path, capsys):
    report = run(models, tmp_path / "out", models.pairs, "pedestrians-small", models.distance)
    printed = capsys.readouterr().out
    row = "llm, verified by 3 models"
    rows = ["llm", "vision", "concat", "llm, verified", "llm, verified, candidates shuffled", row]
    assert list(report["metrics"]) == rows == list(report["intervals"])
    first, small = embedded(models, models.pairs), embedded(models, SMALL)
    listed = nearest(first)
    steep = load_thresholds(models.distance)["llm"].calibration
    odds = [
        by_fusion(first, listed),
        by_calibration(small, listed, CALIBRATION),
        by_calibration(first, listed, steep),
    ]
    assert report["metrics"][row] == pytest.approx(expected(first, listed, np.mean(odds, axis=0)), abs=1e-9)
    assert report["metrics"]["llm, verified"] == pytest.approx(expected(first, listed, odds[0]), abs=1e-9)
    # Every model has a say: without it the order is another one.
    for left_out in range(3):
        rest = np.mean([own for place, own in enumerate(odds) if place != left_out], axis=0)
        assert not np.array_equal((-rest).argsort(axis=1), (-np.mean(odds, axis=0)).argsort(axis=1))
    entry = report["verified_by_models"]
    assert entry["top"] == TOP and list(entry["differences"]) == ["llm", "llm, verified"]
    for baseline, difference in entry["differences"].items():
        gain = report["metrics"][row]["mAP"] - report["metrics"][baseline]["mAP"]
        assert difference["mAP"]["difference"] == pytest.approx(gain, abs=1e-9)
        assert f"\n{row} less {baseline}, same queries:\n  mAP" in printed
    seen = "market1501's own test people are trained on"
    assert [tuple(model[key] for key in ("model", "by", "people", "overlap")) for model in entry["models"]] == [
        (models.pairs, "distance and pair score", 12, []),
        ("pedestrians-small", "distance", CALIBRATION.people, []),
        (models.distance, "distance", 11, [seen]),
    ]
    assert f"warning: {models.distance}: {seen}: the result of {row} is not that of unseen people" in printed
    assert entry["models"][0]["cost"]["pairs"] == TOP * report["query_images"] and entry["models"][1]["cost"] is None
    lines = [line for line in printed.splitlines() if line.startswith((f"{models.pairs} ", "pedestrians-small "))]
    assert len(lines) == 2 and f"  12  {TOP}.0 pairs" in lines[0] and lines[1].endswith("no pair")


def test_a_model_and_its_copy_give_what_the_model_gives_alone(models, tmp_path):
    """On shortlists of the whole gallery, which lack the image of the query's person and camera."""
    copy = shutil.copytree(models.pairs, tmp_path / "copy")
    report = run(models, tmp_path / "out", models.pairs, str(copy), "--verify_top", "9999")
    metrics, entry = report["metrics"], report["verified_by_models"]
    assert entry["top"] == report["gallery_images"]
    assert entry["models"][1]["cost"]["pairs"] < entry["top"] * report["query_images"]
    assert metrics["llm, verified by 2 models"] == metrics["llm, verified"] != metrics["llm"]


def test_an_encoder_gives_the_shortlist_and_a_model_of_pairs_its_order(models, tmp_path, capsys):
    """The encoder's own calibration is flat here, so the other model decides alone. It is an ONNX file in a folder."""
    folder = tmp_path / "small"
    folder.mkdir()
    shutil.copy(Path(SMALL) / "model.onnx", folder)
    flat = replace(CALIBRATION, distances=(0.0,), log_ratios=(2.0,))
    save_thresholds(folder, {"vision": replace(THRESHOLD, calibration=flat)})
    report = run(models, tmp_path / "out", str(folder), models.pairs)
    assert list(report["metrics"]) == ["vision", "vision, verified by 2 models"] and "verified" not in report
    first = embedded(models, str(folder))
    listed = nearest(first)
    odds = by_fusion(embedded(models, models.pairs), listed)
    assert report["metrics"]["vision, verified by 2 models"] == pytest.approx(expected(first, listed, odds), abs=1e-9)
    assert not np.array_equal((-odds).argsort(axis=1), np.tile(np.arange(TOP), (len(odds), 1)))
    assert list(report["verified_by_models"]["differences"]) == ["vision"]
    assert "vision, verified by 2 models less vision, same queries" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        (
            "pairs",
            ["--verify_top", "0", "--verify_with", "pedestrians-small"],
            "verify_with: orders the nearest images of verify_top: add --verify_top, or leave it out",
        ),
        (
            "pairs",
            ["--verify_with", "{neither}"],
            "the checkpoint of {neither} has no fusion of pair scores and no calibration for the feature 'llm': train "
            "with this test_feature and at least 10 people in val, or leave it out",
        ),
        ("neither", ["--verify_with", "pedestrians-small"], "verify_with: the checkpoint of {neither} has no fusion"),
        (
            "pairs",
            ["--test_feature", "vision", "--verify_with", "{distance}"],
            "the checkpoint of {pairs} has no fusion of pair scores and no calibration for the feature 'vision'",
        ),
        (
            "pairs",
            ["--verify_with", "{distance}", "{distance}/"],
            "verify_with: {distance}/ is there twice, and each model counts once: leave it out",
        ),
        ("pairs", ["--verify_with", "{pairs}"], "verify_with: {pairs} is there twice, and each model counts once"),
        (
            "pairs",
            ["--verify_with", f"{SMALL}/model.onnx"],
            f"verify_with: {SMALL}/model.onnx is a file, and the calibration is in the threshold.json of a checkpoint: "
            "give a folder that has both",
        ),
        (
            "pairs",
            ["--verify_with", "{distance}", "--flip_test", "true"],
            "verify_top: the calibration holds for the settings of the training: leave out flip_test",
        ),
        ("pairs", ["--verify_with", "pedestrian-small"], "did you mean pedestrians-small?"),
    ],
)
def test_mistakes_are_reported_before_the_work(models, tmp_path, monkeypatch, model, more, message):
    monkeypatch.setattr(evaluate, "evaluate_and_report", None)  # calling it would be another error
    names = {name: getattr(models, name) for name in ("pairs", "distance", "neither")}
    more = [word.format(**names) for word in more]
    flags = ["--model", names[model], *models.flags, "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError) as error:
        evaluate.main([*flags, *more])
    assert message.format(**names) in str(error.value) and "\n" not in str(error.value)
