"""`evaluate --verify_top` on a tiny model that was trained with `pair_weight`: training, tables, JSON, mistakes."""

import json
import os
import shutil
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from children import start_children
from tiny_training import train_tiny, world_of

from modeling_mllmreid.commands import evaluate, export
from modeling_mllmreid.data.contract import image_sources
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.evaluation import verified_report
from modeling_mllmreid.evaluation.metrics import metrics_from_blocks
from modeling_mllmreid.evaluation.pair_fusion import PairFusion
from modeling_mllmreid.evaluation.pair_fusion_fit import fit_fusion_of_shortlists
from modeling_mllmreid.evaluation.pair_scores import score_shortlist
from modeling_mllmreid.evaluation.protocol import embed_query_gallery, protocol_features, same_person
from modeling_mllmreid.evaluation.run import EvaluateArguments, evaluate_and_report
from modeling_mllmreid.evaluation.threshold import load_thresholds, save_thresholds
from modeling_mllmreid.evaluation.verified_ranking import verified_blocks
from modeling_mllmreid.model.processing_mllmreid import PAIR_ANSWERS, PAIR_QUESTION
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.retrieval.ranking import rank_gallery
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.training.loading import load_model
from modeling_mllmreid.utils import processes
from modeling_mllmreid.utils.errors import UserError

WORDS = (*PAIR_ANSWERS, PAIR_QUESTION)
SMALL = ModelArguments("pedestrians-small").model
SETTINGS = {"max_steps": 8, "model": {"pair_weight": 1.0}, "words": WORDS}
# Leaves no doubt which order the pairs of the test have.
BY_SCORE = PairFusion(0.0, 0.0, 1e4, 1.0, 1.0, 1.0, 12, 100, 3, 48, 0.2, 0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A world with 12 people of val, and a model that was trained on it."""
    root = tmp_path_factory.mktemp("verify")
    write_pedestrians(root / "people", train_identities=20, test_identities=5, images_per_camera=2, cameras=2)
    result = train_tiny(root, world_of(root / "people"), batch={"val_identities": 12}, **SETTINGS)
    flags = ["--dataset", "market1501", "--data_dir", str(root / "people")]
    return SimpleNamespace(folder=root / "run", flags=flags, people=root / "people", result=result, root=root)


@pytest.fixture
def by_score(trained, tmp_path):
    """The checkpoint with a fusion that follows the pair score alone."""
    folder = shutil.copytree(trained.folder, tmp_path / "by_score")
    threshold = load_thresholds(str(folder))["llm"]
    save_thresholds(folder, {"llm": replace(threshold, fusion=BY_SCORE)})
    return folder


def test_a_training_with_pairs_stores_the_fusion_of_its_test_feature(trained):
    thresholds = load_thresholds(str(trained.folder))
    assert thresholds["vision"].fusion is None and thresholds["concat"].fusion is None
    fusion = thresholds["llm"].fusion
    queries, gallery = trained.result.val
    assert (fusion.people, fusion.top, fusion.gallery) == (12, 20, len(gallery)) and len(
        set(queries["person_id"][:])
    ) == 12
    # The image of the query's person and camera is dropped, if there is one.
    assert len(queries) * (min(20, len(gallery)) - 1) <= fusion.pairs <= len(queries) * min(20, len(gallery))
    assert fusion.distance <= 0 <= fusion.score and 0 <= fusion.low <= fusion.high <= 1
    # An untrained score is about 0 and promises one half.
    assert fusion.ece_after < fusion.ece_before


def test_rows_differences_pairs_and_cost(trained, by_score, tmp_path, capsys):
    flags = ["--model", str(by_score), *trained.flags, "--output_dir", str(tmp_path / "out")]
    evaluate.main([*flags, "--verify_top", "3", "--batch_size", "4", "--rerank", "true"])
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    rows = ["llm, verified", "llm, verified, candidates shuffled"]
    assert list(report["metrics"]) == ["llm", "vision", "concat", *rows, "llm, re-ranked"] == list(report["intervals"])
    entry = report["verified"]
    assert entry["top"] == entry["fusion"]["top"] == 3 and list(entry["differences"]) == rows
    for name in rows:
        gain = report["metrics"][name]["mAP"] - report["metrics"]["llm"]["mAP"]
        assert entry["differences"][name]["mAP"]["difference"] == pytest.approx(gain, abs=1e-9)
        assert f"\n{name} less llm, same queries:\n  mAP" in printed
    # The same by hand.
    model, processor = load_model(ModelArguments(str(by_score)))
    features = protocol_features(model, processor, load_reid_dataset("market1501", data_dir=trained.people))
    query, gallery = features.query["llm"], features.gallery["llm"]
    shortlist = rank_gallery(query, gallery, 3, same_person=features.rule)
    sources = [image_sources(split) for split in (features.query_split, features.gallery_split)]
    scores, _ = score_shortlist(model, processor, *sources, shortlist.indices)
    blocks = verified_blocks(query, gallery, shortlist, scores)
    assert report["metrics"][rows[0]] == pytest.approx(metrics_from_blocks(blocks, features.rule).to_dict(), abs=1e-9)
    # The order of the scores is another one than that of the distances.
    assert not np.array_equal((-scores).argsort(axis=1), np.tile(np.arange(3), (len(scores), 1)))
    queries = report["query_images"]
    assert (
        entry["cost"]["pairs"] == 3 * queries == entry["shortlist"]["pairs"] and entry["cost_per_query"]["pairs"] == 3
    )
    assert entry["cost"]["question_passes"] == -(-3 * queries // 4)
    crops = queries + len(np.unique(shortlist.indices))
    assert entry["cost"]["crops"] == crops
    assert list(entry["shortlist"]["verification"]) in ([], ["distance", "pair score", "fused"])
    assert set(entry["shortlist"]["ece"]) == {"pair score", "fused"}
    assert f"cost per query: 3.0 pairs, {crops / queries:.1f} crops read" in printed
    assert "fitted on 12 people" in printed and "calibration error" in printed


def test_scores_that_know_the_people_raise_the_row_and_not_the_control(trained, by_score, tmp_path, monkeypatch):
    """Scores of 1 for one person and 0 for two put every match of the shortlist first."""

    def knows(model, processor, query, gallery, places, **options):
        persons = [np.array([int(str(source).rpartition("/")[2][:4]) for source in side]) for side in (query, gallery)]
        _, cost = score_shortlist(model, processor, query, gallery, places, progress=False)
        return (persons[0][:, None] == persons[1][places]).astype(np.float32), cost

    monkeypatch.setattr(verified_report, "shared_scores", knows)
    flags = ["--model", str(by_score), *trained.flags, "--output_dir", str(tmp_path / "out")]
    evaluate.main([*flags, "--verify_top", "9999999"])
    report = json.loads((tmp_path / "out/metrics.json").read_text())
    assert report["verified"]["top"] == report["gallery_images"]
    verified, control = list(report["metrics"].values())[3:]
    assert verified["mAP"] == 1
    found = report["verified"]["shortlist"]["same"]
    assert found > 0 and report["verified"]["shortlist"]["verification"]["fused"]["eer"] == 0
    assert control["mAP"] < 0.9 and report["metrics"]["llm"]["mAP"] < 0.9


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--verify_top", "1"], "verify_top 1: one image has no other order: give 2 or more, or 0 for none"),
        (["--verify_top", "-1"], "verify_top"),
        (
            ["--verify_top", "5", "--pool_tracks", "true"],
            "verify_top: compares single images of one split: leave out pool_tracks or verify_top",
        ),
        (["--verify_top", "5", "--splits", "2"], "leave out splits or verify_top"),
        (
            ["--verify_top", "5", "--flip_test", "true", "--llm_layer", "1"],
            "verify_top: the fusion holds for the settings of the training: leave out flip_test, llm_layer",
        ),
        (
            ["--verify_top", "5", "--test_feature", "vision"],
            "has no fusion of pair scores for the feature 'vision': train with pair_weight, this test_feature and at "
            "least 10 people in val, or fit it with calibrate",
        ),
    ],
)
def test_mistakes(trained, tmp_path, more, message):
    flags = ["--model", str(trained.folder), *trained.flags, "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError) as error:
        evaluate.main([*flags, *more])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_models_without_pairs(trained, disk, tmp_path):
    flags = [*trained.flags, "--verify_top", "5", "--output_dir", str(tmp_path / "out")]
    with pytest.raises(UserError, match="has no question about pairs: train it with pair_weight, or leave it out"):
        evaluate.main(["--model", str(disk.ours), *flags])
    export.main(["--model", str(trained.folder), "--to", "vision", "--output", str(tmp_path / "form")])
    needs = (
        "is a vision form or an ONNX file, and pairs need a language model: give a checkpoint that was trained with "
        "pair_weight, or add one with verify_with$"
    )
    for model in (str(tmp_path / "form"), "pedestrians-small"):
        with pytest.raises(UserError, match=needs):
            evaluate.main(["--model", model, *flags])
    onnx = str(next((Path(ModelArguments("pedestrians-small").model)).glob("*.onnx")))
    with pytest.raises(UserError, match=needs):
        evaluate.main(["--model", onnx, *flags])
    # Trained further without pairs: it keeps the question, and `calibrate` fits no fusion for it.
    further = Path(shutil.copytree(trained.folder, tmp_path / "further"))
    config = json.loads((further / "config.json").read_text()) | {"pair_weight": 0.0}
    (further / "config.json").write_text(json.dumps(config))
    (further / "threshold.json").unlink()
    with pytest.raises(UserError, match="train with pair_weight, this test_feature and at least 10 people in val$"):
        evaluate.main(["--model", str(further), *flags])


def test_an_evaluation_in_python_needs_the_fusion_too(trained):
    model, processor = load_model(ModelArguments(str(trained.folder)))
    args = EvaluateArguments(verify_top=3)
    with pytest.raises(UserError, match="verify_top: there is no fusion: give that of the checkpoint"):
        evaluate_and_report(model, processor, world_of(trained.people), args, {"model": str(trained.folder)})


def test_a_val_that_is_too_small_gives_no_fusion(trained, caplog):
    train_tiny(trained.root, world_of(trained.people), "few", batch={"val_identities": 6}, **SETTINGS)
    assert load_thresholds(str(trained.root / "few"))["llm"].fusion is None
    assert "no fusion of pair scores on val: the queries show 6 people, and 10 are needed" in caplog.messages
    train_tiny(trained.root, world_of(trained.people), "fewer", batch={"val_identities": 2}, **SETTINGS)
    assert load_thresholds(str(trained.root / "fewer")) == {}
    reason = "too few people for a threshold of the feature 'llm'"
    assert f"no fusion of pair scores on val: {reason}" in caplog.messages


def fit_and_evaluate(folder: Path, flags: list[str], val, output: Path) -> dict:
    """The fusion that processes fit together, sharing the queries or not, and the report of the command."""
    model, processor = load_model(ModelArguments(str(folder)))
    features = embed_query_gallery(model, processor, *val, progress=False)
    given = (model, processor, *val, *(part["llm"] for part in features), same_person(*val))
    fused = [fit_fusion_of_shortlists(*given, share=share, progress=False) for share in (True, False)]
    further = ["--verify_with", str(folder.parent / "distance"), str(folder.parent / "copy")]
    evaluate.main(["--model", str(folder), *flags, "--verify_top", "3", *further, "--output_dir", str(output / "out")])
    return {"fused": fused, "report": json.loads((output / "out/metrics.json").read_text())}


def one_of_two(rank: int, port: int, output: Path, *args) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    processes.PATIENCE = timedelta(seconds=100)  # processes that wait for each other must fail, not hang
    torch.save(fit_and_evaluate(*args, output), output / f"got{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_fit_and_report_what_one_does(trained, by_score, tmp_path):
    (tmp_path / "both").mkdir()
    # Further models: one with a calibration alone, and one that compares pairs.
    shutil.copytree(trained.folder, tmp_path / "copy")
    shutil.copytree(trained.folder, tmp_path / "distance")
    threshold, calibration = load_thresholds(str(trained.folder))["llm"], load_thresholds(SMALL)["vision"].calibration
    save_thresholds(tmp_path / "distance", {"llm": replace(threshold, fusion=None, calibration=calibration)})
    work = (by_score, trained.flags, trained.result.val)
    two = start_children(one_of_two, 31500 + os.getpid() % 1000, tmp_path / "both", *work, count=2)
    alone = fit_and_evaluate(*work, tmp_path / "alone")
    while not two.join():
        pass
    main, other = (torch.load(tmp_path / "both" / f"got{rank}.pt", weights_only=False) for rank in (0, 1))
    assert main["fused"] == other["fused"]
    for fusion in main["fused"]:
        # Rounding depends on the batch.
        assert asdict(fusion) == pytest.approx(asdict(alone["fused"][0]), rel=1e-3, abs=1e-4)
    assert main["report"]["metrics"] == alone["report"]["metrics"]
    costs = [got["report"]["verified"]["cost"] for got in (main, alone)]
    assert list(main["report"]["metrics"])[-1] == "llm, verified by 3 models"
    models = [got["report"]["verified_by_models"]["models"] for got in (main, alone)]
    assert models[0][1]["cost"] is None and models[0][2]["cost"]["pairs"] == models[1][2]["cost"]["pairs"]
    assert costs[0]["pairs"] == costs[1]["pairs"] and costs[0]["crops"] > costs[1]["crops"]  # each reads its candidates
