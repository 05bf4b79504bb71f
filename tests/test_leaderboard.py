"""The leaderboard: its page is that of its lines, its rows can be measured again, and one command adds a row."""

import datetime
import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from documents import ROOT
from PIL import Image

from modeling_mllmreid.evaluation.onnx_encoder import OnnxEncoder
from modeling_mllmreid.model.shipped_models import PRETRAINED
from modeling_mllmreid.retrieval.embeddings import weights_digest
from modeling_mllmreid.synthetic import worlds
from modeling_mllmreid.synthetic.worlds import World
from modeling_mllmreid.training import embedder

TINY = World(0, scenes=2, cameras=2, images_per_camera=2, test_identities=3)


@pytest.fixture(scope="module")
def scripts():
    """The two modules of benchmarks/."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield SimpleNamespace(
        board=importlib.import_module("leaderboard"), page=importlib.import_module("leaderboard_page")
    )
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def published(scripts):
    return scripts.page.read_lines(ROOT)


def test_the_page_is_that_of_the_lines(scripts, published):
    assert (ROOT / scripts.page.PAGE).read_text(encoding="utf-8") == scripts.page.page(published)
    assert len(published) >= 4


def test_rows_name_what_measured_them(scripts, published):
    keys = [(row["name"], row["commit"]) for row in published]
    assert len(set(keys)) == len(keys)
    for row in published:
        assert re.fullmatch("[0-9a-f]{40}", row["commit"]), row["name"]
        assert datetime.date.fromisoformat(row["date"]) and row["machine"] and row["versions"]["torch"]
        assert row["weights"] or row["revision"] or row["settings"] == {"feature": "histogram"}
        program, script, *words = shlex.split(row["command"])
        assert (program, script) == ("python", "benchmarks/leaderboard.py")
        assert not [word for word in words if word.startswith(("/", "~"))]
        options, _ = scripts.board.arguments(words)
        assert options.histogram or options.model
        assert ("outside_crops" in row["results"]) == (options.outside is not None)
        assert {"rendered_elsewhere", "rendered_doubles"} <= row["results"].keys() <= scripts.page.TESTS.keys()
        for result in row["results"].values():
            intervals = [result[key] for key in ("mAP", "rank1", "mINP")]
            assert all(0 <= i["low"] <= i["estimate"] <= i["high"] <= 1 for i in intervals)
            assert result["people"] > 1 and re.fullmatch("[0-9a-f]{64}", result["images"])


def test_all_rows_are_of_the_same_outside_crops(published):
    crops = {row["results"]["outside_crops"]["images"] for row in published if "outside_crops" in row["results"]}
    assert len(crops) == 1


def row(name, mean, commit="a" * 40, **changed):
    """A row whose metrics are all alike."""
    result = {key: {"estimate": mean, "low": mean / 2, "high": 1.0} for key in ("mAP", "rank1", "mINP")}
    result |= {"people": 3, "queries": 6, "gallery_images": 7, "images": "0" * 64}
    identity = {
        "weights": f"{name}-weights",
        "revision": None,
        "settings": {"feature": "vision", "height": 8, "width": 4},
    }
    more = {"parameters": 2_500_000, "embedding_size": 8, "trained_on": [], "date": "2026-01-01", "commit": commit}
    more |= {"command": "python x.py", "versions": {"torch": "2"}, "machine": "a CPU"}
    results = {"rendered_elsewhere": result, "rendered_doubles": result}
    return {"name": name, **identity, **more, "results": results, **changed}


def test_the_page_has_the_newest_row_of_each_name_the_best_first(scripts):
    rows = [row("old|er", 0.9), row("b", 0.5), row("old|er", 0.2, commit="b" * 40), row("a", 0.5)]
    text = scripts.page.page(rows)
    first = text.partition("## Models")[2].partition("## Add a row")[0]
    assert re.findall(r"^\| (.*?) \| - \| 2\.5 M \| (.*?) \|", first, re.MULTILINE) == [
        ("a", "50.0 [25.0, 100.0]"),
        ("b", "50.0 [25.0, 100.0]"),
        (r"old\|er", "20.0 [10.0, 100.0]"),
    ]
    assert first.count("| not measured |") == 3 and "`bbbbbbbbbbbb`" in text and "90.0" not in text


def test_a_row_takes_the_place_of_that_of_its_name_and_commit(scripts):
    rows = [row("a", 0.1), row("b", 0.2), row("a", 0.3, commit="c" * 40)]
    assert scripts.page.with_row(rows, row("a", 0.9)) == [row("a", 0.9), *rows[1:]]
    assert scripts.page.with_row(rows, row("b", 0.9, commit="c" * 40)) == [*rows, row("b", 0.9, commit="c" * 40)]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"trained_on": ["rendered_doubles"]}, "has seen people of the test (rendered_doubles's own test people are"),
        ({"trained_on": ["rendered_elsewhere:all"]}, "it gets no row"),
        ({"name": "c"}, "name c: this model has the row 'a': give that --name"),
        ({"weights": "others"}, "name a: is the row of other weights or settings: give another --name"),
        ({"settings": {"feature": "llm"}}, "name a: is the row of other weights or settings"),
    ],
)
def test_a_model_gets_no_row_if(changed, message, scripts):
    with pytest.raises(scripts.board.UserError, match=re.escape(message)):
        scripts.board.refuse_no_row(row("a", 0.1) | changed, [row("a", 0.5)])


def test_a_model_gets_a_row_if_it_is_new_or_measured_again(scripts):
    trained = ["rendered_town", "market1501", "cuhk_pedes"]
    for model in (row("a", 0.1, trained_on=trained), row("b", 0.1)):
        scripts.board.refuse_no_row(model, [row("a", 0.5)])


@pytest.fixture
def checkout(tmp_path, monkeypatch, scripts):
    """A git checkout with this package, two small worlds and outside crops; the leaderboard's own folder is there."""
    root = tmp_path / "checkout"
    (root / "benchmarks").mkdir(parents=True)
    (root / "docs").mkdir()
    (root / "modeling_mllmreid").symlink_to(ROOT / "modeling_mllmreid")
    for name in ("leaderboard.py", "leaderboard_page.py"):
        shutil.copy(ROOT / "benchmarks" / name, root / "benchmarks")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "-m", "code")
    for world in ("elsewhere", "doubles"):
        monkeypatch.setitem(worlds.WORLDS, world, TINY)
    write_crops(tmp_path / "crops", seed=0)
    monkeypatch.setattr(scripts.board, "ROOT", root)
    monkeypatch.chdir(tmp_path)
    return root


def git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", root, *words], check=True, capture_output=True, text=True).stdout.strip()


def write_crops(folder: Path, seed: int) -> None:
    """Writes two people before two cameras, in Market-1501 layout."""
    rng = np.random.default_rng(seed)
    for split, camera in (("query", 1), ("bounding_box_test", 2)):
        (folder / split).mkdir(parents=True)
        for person in (1, 2):
            pixels = rng.integers(0, 256, (40, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{person:04d}_c{camera}s1_000001_00.jpg")


def test_one_command_adds_a_row(checkout, scripts, tmp_path, capsys):
    main = scripts.board.main
    outside = ["--outside", str(tmp_path / "crops")]
    main(["--histogram", *outside])
    main(["--model", "pedestrians-small", "--width", "32", *outside])
    main(["--model", "pedestrians-small", "--width", "32"])
    assert "pedestrians-small, rendered_elsewhere: mAP " in capsys.readouterr().out
    histogram, model = (json.loads(line) for line in (checkout / "benchmarks/leaderboard.jsonl").open())
    # Measured twice on a commit: the second row is there, which has no outside crops.
    assert list(histogram["results"]) == ["rendered_elsewhere", "rendered_doubles", "outside_crops"]
    assert list(model["results"]) == ["rendered_elsewhere", "rendered_doubles"]
    assert model["commit"] == histogram["commit"] == git(checkout, "rev-parse", "HEAD")
    assert model["command"] == "python benchmarks/leaderboard.py --model pedestrians-small --width 32"
    assert histogram["command"] == "python benchmarks/leaderboard.py --histogram --outside crops"
    assert model["weights"] == weights_digest(PRETRAINED / "pedestrians-small")
    assert (model["settings"]["width"], model["embedding_size"], histogram["embedding_size"]) == (32, 768, 3072)
    assert model["trained_on"] == ["rendered_town", "rendered_town_summer", "rendered_town_winter"]
    assert 1e6 < model["parameters"] < 3e6
    for result in model["results"].values():
        assert (result["people"], result["queries"], result["gallery_images"]) == (3, 6, 6)
    page = (checkout / "docs/leaderboard.md").read_text()
    assert page == scripts.page.page([histogram, model])

    # Without a model the page alone is written.
    (checkout / "docs/leaderboard.md").unlink()
    main([])
    assert (checkout / "docs/leaderboard.md").read_text() == page

    # Other outside crops, and code that was changed.
    write_crops(tmp_path / "others", seed=1)
    assert refused(main, ["--histogram", "--outside", str(tmp_path / "others")], capsys) == (
        f"error: outside {tmp_path / 'others'}: are other crops than those of the leaderboard: leave it out\n"
    )
    with (checkout / "benchmarks/leaderboard.py").open("a") as file:
        file.write("# changed\n")
    assert refused(main, ["--histogram"], capsys) == (
        "error: benchmarks/leaderboard.py: differs from the commit of the row: commit it first\n"
    )


def refused(main, argv, capsys) -> str:
    """Returns the message of a command that a mistake of the user ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        main(argv)
    assert exit.value.code == 2
    return capsys.readouterr().err


def test_code_of_another_place_gets_no_row(checkout, scripts, capsys):
    (checkout / "modeling_mllmreid").unlink()
    (checkout / "modeling_mllmreid").mkdir()
    assert "is not the code of this checkout: pip install -e" in refused(scripts.board.main, ["--histogram"], capsys)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--width", "32"], "model is not given"),
        (["--outside", "crops"], "model is not given"),
        (["--histogram", "--name", "a"], "the histogram has no model, name or settings"),
    ],
)
def test_options_that_do_not_belong_together(argv, message, scripts, capsys):
    assert message in refused(scripts.board.main, argv, capsys)


def test_an_onnx_file_is_described(scripts, monkeypatch):
    path = PRETRAINED / "pedestrians-small/model.onnx"
    options, rest = scripts.board.arguments(["--model", str(path), "--name", "a file"])
    described = scripts.board.Model(options, rest).description
    model, _ = embedder.load_embedder(scripts.board.ModelArguments(str(path)))
    assert isinstance(model, OnnxEncoder) and described["weights"] == model.file.digest
    assert described["settings"]["onnx"] == model.settings.options() and 1e6 < described["parameters"] < 3e6


def test_recorded_paths_are_those_of_every_machine(scripts, checkout, tmp_path):
    inside = checkout / "runs/model"
    inside.mkdir(parents=True)
    named = {
        str(inside): "runs/model",
        str(tmp_path / "crops"): "crops",
        "facebook/dinov2-small": "facebook/dinov2-small",
    }
    assert {path: scripts.board.neutral(path) for path in named} == named
