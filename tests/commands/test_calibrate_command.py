"""`calibrate` on a tiny model that was trained with `pair_weight`: what it stores, keeps, prints and refuses."""

import contextlib
import io
import json
import os
import re
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

from modeling_mllmreid.commands import calibrate, evaluate, export
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.data.splits import split_query_gallery
from modeling_mllmreid.evaluation.calibration_fit import fit_calibration
from modeling_mllmreid.evaluation.pair_fusion_fit import fit_fusion_of_shortlists
from modeling_mllmreid.evaluation.protocol import embed_query_gallery, same_person
from modeling_mllmreid.evaluation.threshold import load_thresholds
from modeling_mllmreid.evaluation.threshold_choice import choose_threshold
from modeling_mllmreid.model.processing_mllmreid import PAIR_ANSWERS, PAIR_QUESTION
from modeling_mllmreid.model.shipped_models import PRETRAINED
from modeling_mllmreid.options.arguments import ModelArguments
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.training.loading import load_model
from modeling_mllmreid.utils import processes
from modeling_mllmreid.utils.errors import UserError
from modeling_mllmreid.utils.outputs import write_json

WORDS = (*PAIR_ANSWERS, PAIR_QUESTION)
FILES = ("threshold.json", "threshold.json.before")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that was trained on one world, and people of another one, in two layouts."""
    root = tmp_path_factory.mktemp("calibrate")
    sizes = {"images_per_camera": 2, "cameras": 2}
    write_pedestrians(root / "people", train_identities=16, test_identities=3, **sizes)
    settings = {"max_steps": 2, "model": {"pair_weight": 1.0}, "words": WORDS}
    train_tiny(root, world_of(root / "people"), batch={"val_identities": 12}, **settings)
    write_pedestrians(root / "site", test_identities=14, train_identities=0, seed=5, **sizes)
    for path in sorted((root / "site/bounding_box_test").glob("*.jpg")):
        folder = root / "folders/train" / f"person {path.name[:4]}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    return SimpleNamespace(
        folder=root / "run",
        root=root,
        site=["--dataset", "market1501", "--data_dir", str(root / "site")],
        folders=["--dataset", "folders", "--data_dir", str(root / "folders")],
    )


@pytest.fixture
def model(trained, tmp_path):
    """A copy of the checkpoint."""
    return shutil.copytree(trained.folder, tmp_path / "model")


def direct_fit(folder: Path, query, gallery) -> dict:
    """What the functions of threshold, calibration and fusion give on these people."""
    model, processor = load_model(ModelArguments(str(folder)))
    features = embed_query_gallery(model, processor, query, gallery, progress=False)
    rule, persons = same_person(query, gallery), query["person_id"][:] + gallery["person_id"][:]
    fitted = {}
    for name in features[0]:
        sides = [side[name] for side in features]
        threshold = choose_threshold(*sides, rule)
        fitted[name] = replace(threshold, calibration=fit_calibration(np.concatenate(sides), persons))
        if name == "llm":
            fusion = fit_fusion_of_shortlists(model, processor, query, gallery, *sides, rule, progress=False)
            fitted[name] = replace(fitted[name], fusion=fusion)
    return fitted


def test_the_new_values_are_those_of_a_fit_on_these_people(trained, model, capsys):
    before, earlier = load_thresholds(str(model)), (model / FILES[0]).read_bytes()
    calibrate.main(["--model", str(model), *trained.site, "--people", "test"])
    now, dataset = load_thresholds(str(model)), load_reid_dataset("market1501", data_dir=trained.root / "site")
    assert now == direct_fit(model, dataset["query"], dataset["gallery"])
    assert (now["llm"].people, now["llm"].fusion.people, now["llm"].gallery) == (14, 14, len(dataset["gallery"]))
    assert (model / FILES[1]).read_bytes() == earlier
    printed = capsys.readouterr().out
    table = {line.split("  ")[0]: line for line in printed.splitlines()}
    for name in ("llm", "vision", "concat"):
        assert now[name] != before[name]
        cells = (f"{t.distance:.4f} [{t.low:.4f}, {t.high:.4f}]" for t in (before[name], now[name]))
        assert re.search(".*".join(map(re.escape, cells)), table[f"{name}, threshold"])
    old, new = before["llm"].fusion, now["llm"].fusion
    assert re.search(f"{old.constant:.2f} +{new.constant:.2f}$", table["llm, constant of the fusion"])
    assert f"{new.share:.2f} [{new.low:.2f}, {new.high:.2f}]" in table["llm, share of the pair score"]
    assert re.search(f"{old.ece_after:.3f} +{new.ece_after:.3f}$", table["llm, calibration error"])
    assert f"14 people, 28 searches in {len(dataset['gallery'])} images" in printed
    assert f"thresholds: {model / FILES[0]}; the earlier ones: {model / FILES[1]}" in printed


def test_a_second_run_keeps_the_newest_earlier_file_and_train_is_split_as_val_is(trained, model):
    calibrate.main(["--model", str(model), *trained.site, "--people", "test"])
    first = (model / FILES[0]).read_bytes()
    calibrate.main(["--model", str(model), *trained.folders, "--people", "train"])
    assert (model / FILES[1]).read_bytes() == first != (model / FILES[0]).read_bytes()
    train = load_reid_dataset("folders", data_dir=trained.root / "folders")["train"]
    assert load_thresholds(str(model)) == direct_fit(model, *split_query_gallery(train))
    assert {path.stat().st_mode & 0o777 for path in (model / name for name in FILES)} == {0o600}


def test_the_verified_ranking_uses_the_new_fusion(trained, model, tmp_path):
    calibrate.main(["--model", str(model), *trained.site, "--people", "test"])
    people = ["--dataset", "market1501", "--data_dir", str(trained.root / "people")]
    evaluate.main(["--model", str(model), *people, "--verify_top", "3", "--output_dir", str(tmp_path / "out")])
    used = json.loads((tmp_path / "out/metrics.json").read_text())["verified"]["fusion"]
    assert used == asdict(load_thresholds(str(model))["llm"].fusion)
    assert used != asdict(load_thresholds(str(trained.folder))["llm"].fusion)


def test_models_without_a_language_model(trained, tmp_path, capsys):
    """A vision form, and a copy of the model in the package, whose features are good enough for a calibration."""
    export.main(["--model", str(trained.folder), "--to", "vision", "--output", str(tmp_path / "form")])
    shutil.copytree(PRETRAINED / "pedestrians-small", tmp_path / "copy")
    (tmp_path / "copy/threshold.json").unlink()
    for folder in (tmp_path / "form", tmp_path / "copy"):
        calibrate.main(["--model", str(folder), *trained.site, "--people", "test"])
        now = load_thresholds(str(folder))
        assert list(now) == ["vision"] and now["vision"].people == 14 and now["vision"].fusion is None
    # Without an earlier file none is kept.
    assert now["vision"].calibration.people == 14 and not (tmp_path / "copy" / FILES[1]).exists()
    assert re.search(r"^vision, threshold +- +\d", capsys.readouterr().out, re.MULTILINE)


def table_of(trained, folder: Path, rows) -> list[str]:
    """The flags of a table of (person, camera, split) with an image of the site for each."""
    folder.mkdir()
    images = sorted((trained.root / "site/bounding_box_test").glob("*.jpg"))
    lines = ["file_name,person_id,camera_id,split"]
    for number, row in enumerate(rows):
        shutil.copy(images[number], folder / f"{number}.jpg")
        lines.append(",".join([f"{number}.jpg", *map(str, row)]))
    (folder / "metadata.csv").write_text("\n".join(lines))
    return ["--dataset", "table", "--data_dir", str(folder)]


QUERIES = [(person, 1, "query") for person in range(10)]
OTHERS = [(person, 2, "gallery") for person in range(50, 54)]


@pytest.mark.parametrize(
    ("flags", "rows", "message"),
    [
        ([], QUERIES, "calibrate: people is not given: add it"),
        (["--people", "val"], QUERIES, "give one of train, test"),
        (
            ["--people", "test"],
            [*QUERIES[:9], *OTHERS],
            "test: the queries show 9 people, and 10 are needed",
        ),
        (
            ["--people", "test"],
            [(0, 1, "train"), (1, 1, "train")],
            "has train, and not query and gallery: give --people train",
        ),
        (
            ["--people", "train"],
            [*QUERIES, *OTHERS],
            "has query, gallery, and not train: give --people test, or another data set",
        ),
        (["--people", "train"], [(p, 1, "train") for p in range(12)], "each person has one image: a query needs"),
        (["--people", "test"], [*QUERIES, *OTHERS], "test: no threshold of the feature 'llm': no query has a match"),
        (
            ["--people", "test"],
            [*QUERIES, *OTHERS, (0, 2, "gallery"), (1, 2, "gallery")],
            "no fusion of pair scores: fewer than 3 people have pairs of one person among their 20 nearest images",
        ),
    ],
)
def test_a_mistake_changes_nothing(trained, model, tmp_path, flags, rows, message):
    earlier = {path: path.read_bytes() for path in model.iterdir() if path.is_file()}
    with pytest.raises(UserError) as error:
        calibrate.main(["--model", str(model), *table_of(trained, tmp_path / "table", rows), *flags])
    assert message in str(error.value) and "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in model.iterdir() if path.is_file()} == earlier


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("owner/name", r"is no folder.*\(hf download owner/name --local-dir FOLDER\) and give --model FOLDER"),
        ("pedestrians-small", r"pedestrians-small: comes with the package and is not changed: copy it \(cp -r /"),
        (str(PRETRAINED / "pedestrians-small/model.onnx"), "an ONNX file can be used by embed, search and evaluate"),
    ],
)
def test_a_model_whose_thresholds_cannot_be_stored_is_refused_before_the_work(name, message):
    with pytest.raises(UserError, match=message):
        calibrate.main(["--model", name, "--dataset", "market1501", "--data_dir", "none", "--people", "test"])


def test_a_file_that_is_not_ours_is_not_replaced(trained, model):
    (model / FILES[1]).write_text("notes")
    with pytest.raises(UserError, match="threshold.json.before: exists and was not written by this program"):
        calibrate.main(["--model", str(model), *trained.site, "--people", "test"])
    assert (model / FILES[0]).read_bytes() == (trained.folder / FILES[0]).read_bytes()


@pytest.mark.parametrize("file", FILES)
def test_a_link_is_not_replaced(trained, model, tmp_path, file):
    """As all files of a checkpoint in the cache of the Hub."""
    target = tmp_path / "elsewhere.json"
    target.write_bytes((model / FILES[0]).read_bytes())
    (model / file).unlink(missing_ok=True)
    (model / file).symlink_to(target)
    fix = f"copy the checkpoint (cp -rL {model} FOLDER) and give --model FOLDER"
    with pytest.raises(UserError) as error:
        calibrate.main(["--model", str(model), *trained.site, "--people", "test"])
    assert str(error.value) == f"model {model}: its {file} is a symbolic link, which is not replaced: {fix}"
    assert (model / file).is_symlink() and target.read_bytes() == (trained.folder / FILES[0]).read_bytes()


def test_people_of_the_training_are_refused(trained, model):
    """By the name of a published data set; test people of it are others."""
    people = ["--dataset", "market1501", "--data_dir", str(trained.root / "people")]
    with pytest.raises(UserError, match="people train: the model was trained on the train split of market1501: give"):
        calibrate.main(["--model", str(model), *people, "--people", "train"])
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", config | {"trained_on": ["market1501:all"]})
    with pytest.raises(UserError, match="has seen some of them .market1501's own test people are trained on.: give"):
        calibrate.main(["--model", str(model), *trained.site, "--people", "test"])


def test_people_of_a_training_on_own_data_are_refused(trained, tmp_path):
    """By the digest of their images, whether people were moved to val or not; the name of the reader says nothing."""
    dataset = load_reid_dataset("folders", data_dir=trained.root / "folders")
    for name, moved in (("whole", 0), ("part", 4)):
        settings = {"model": {"loss_lambda": 1.0}, "max_steps": 1, "seed": 3, "identities_per_batch": 2}
        train_tiny(tmp_path, dataset, name, batch={"val_identities": moved}, **settings)
        write_json(tmp_path / name / "run.json", {"weights": "0", "batches": {"val_identities": moved}})
        with pytest.raises(UserError, match="people train: the model was trained on these people: give other people"):
            calibrate.main(["--model", str(tmp_path / name), *trained.folders, "--people", "train"])
    for path in trained.root.glob("folders/train/*"):
        shutil.copytree(path, tmp_path / "others/train" / f"another {path.name}")
    flags = ["--dataset", "folders", "--data_dir", str(tmp_path / "others"), "--people", "train"]
    calibrate.main(["--model", str(tmp_path / "part"), *flags])
    assert load_thresholds(str(tmp_path / "part"))["llm"].people == 14


def calibrated(folder: Path, flags: list[str]) -> dict:
    calibrate.main(["--model", str(folder), *flags, "--people", "test"])
    return {name: asdict(threshold) for name, threshold in load_thresholds(str(folder)).items()}


def one_of_two(rank: int, port: int, folder: Path, flags: list[str]) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    processes.PATIENCE = timedelta(seconds=100)  # processes that wait for each other must fail, not hang
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        calibrated(folder, flags)
    assert bool(printed.getvalue()) == (rank == 0)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_store_what_one_does(trained, model, tmp_path):
    both = shutil.copytree(model, tmp_path / "both")
    two = start_children(one_of_two, 32500 + os.getpid() % 1000, both, trained.site, count=2)
    alone = calibrated(model, trained.site)
    while not two.join():
        pass
    assert (both / FILES[1]).read_bytes() == (trained.folder / FILES[0]).read_bytes()
    stored = {name: asdict(threshold) for name, threshold in load_thresholds(str(both)).items()}
    for name, expected in alone.items():
        # Rounding depends on the batch.
        fusion = stored[name].pop("fusion"), expected.pop("fusion")
        assert stored[name].pop("calibration") == expected.pop("calibration")
        assert stored[name] == pytest.approx(expected, abs=1e-5)
        assert fusion[0] is fusion[1] is None or fusion[0] == pytest.approx(fusion[1], rel=1e-3, abs=1e-4)
