"""The pictures of the documentation: each is small, and what its script draws."""

import importlib
import json
import re
import sys

import matplotlib
import numpy as np
import pytest
from documents import ROOT
from PIL import Image

FOLDER = ROOT / "docs/images"
PICTURES = ("architecture.png", "data_flow.png", "gallery_page.png", "ranked_sheet.png")
PICTURES += ("relevance.jpg", "training_curves.png")
PINNED = re.search(r"^matplotlib==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)[1]
# Differences of the renderer's and the fonts' rounding.
LEVELS, SHARE = 32, 5e-5
LOG = [
    {"step": 10, "loss": 3.0, "id_vision": 2.0, "triplet_vision": 0.5},
    {"step": 20, "loss": 2.0, "id_vision": 1.0, "triplet_vision": 0.25},
    {"step": 20, "eval_vision_mAP": 0.5, "eval_mAP": 0.5},
]


@pytest.fixture
def script(monkeypatch):
    """Imports a script of the folder by name; the scripts import each other."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in [name for name, module in sys.modules.items() if str(FOLDER) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def pixels(path) -> np.ndarray:
    """A picture as (height, width, 3) integers."""
    return np.asarray(Image.open(path).convert("RGB"), dtype=np.int16)


def share_of_other_pixels(drawn, stored) -> float:
    """The share of pixels in which two pictures clearly differ; 1 if their sizes do."""
    first, second = pixels(drawn), pixels(stored)
    return float((np.abs(first - second) > LEVELS).any(-1).mean()) if first.shape == second.shape else 1.0


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_small_and_has_its_script(name):
    assert (FOLDER / name).with_suffix(".py").is_file()
    assert 20_000 < (FOLDER / name).stat().st_size < 300_000
    picture = Image.open(FOLDER / name)
    assert picture.width >= 900 and np.asarray(picture.convert("L")).std() > 10
    # A path or a version of a machine could be in the metadata.
    assert {"Software", "Comment", "exif", "comment"}.isdisjoint(picture.info)


@pytest.mark.parametrize("name", ["architecture", "data_flow", pytest.param("relevance", marks=pytest.mark.slow)])
def test_a_script_draws_its_picture(name, script, tmp_path):
    module = script(name)
    drawn = tmp_path / module.OUTPUT.name
    module.draw(drawn)
    assert module.OUTPUT.parent == FOLDER and module.OUTPUT.name in PICTURES
    assert drawn.stat().st_size > 20_000
    if matplotlib.__version__ == PINNED:
        assert share_of_other_pixels(drawn, module.OUTPUT) < SHARE, f"python docs/images/{name}.py"


def test_another_word_is_another_picture(script, tmp_path, monkeypatch):
    module = script("data_flow")
    (name, text, fill), *others = module.TRAINING
    monkeypatch.setattr(module, "TRAINING", ((name, text.replace("splits", "splats"), fill), *others))
    module.draw(tmp_path / "drawn.png")
    assert share_of_other_pixels(tmp_path / "drawn.png", module.OUTPUT) > SHARE


def test_curves_of_a_training_without_a_language_model(script, tmp_path):
    module = script("training_curves")
    (tmp_path / "training_log.jsonl").write_text("\n".join(json.dumps(entry) for entry in LOG))
    log = module.read_log(tmp_path)
    axis = module.Figure().subplots()
    module.draw_panel(axis, log, *module.PANELS[1])
    (line,) = axis.lines
    assert line.get_label() == "vision" and line.get_xydata().tolist() == [[10, 2], [20, 1]]
    module.draw_panel(axis, log, *module.PANELS[3])
    assert axis.lines[1].get_xydata().tolist() == [[20, 50]]
    module.draw(tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 20_000
