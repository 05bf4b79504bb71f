"""Pictures: they exist whole, show every result, and say what is missing without matplotlib."""

import sys

import numpy as np
import pytest
from PIL import Image, ImageColor

from modeling_mllmreid.evaluation import plots
from modeling_mllmreid.evaluation.metrics import evaluate_retrieval
from modeling_mllmreid.evaluation.verification import verification_from_blocks
from modeling_mllmreid.retrieval.exact import Ranking
from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.retrieval.sheet import ranked_sheet
from modeling_mllmreid.utils.errors import UserError

EYE = np.eye(4, dtype=np.float32)


def inked_pixels(path, color: str) -> np.ndarray:
    """Which pixels (H, W) have (nearly) this colour."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return np.abs(pixels - ImageColor.getrgb(color)).max(2) < 8


def inked(path) -> dict[str, int]:
    """How many pixels have (nearly) each of the palette's colours."""
    return {color: int(inked_pixels(path, color).sum()) for color in plots.COLORS}


def test_curves_of_the_edge_cases(tmp_path):
    perfect = evaluate_retrieval(EYE, EYE, range(4), range(4))
    collapsed = evaluate_retrieval(np.ones((4, 2)), np.ones((4, 2)), range(4), range(4))
    one = evaluate_retrieval(EYE[:1], EYE, [0], [1, 0, 2, 3])
    plots.draw_curves(tmp_path / "new/curves.png", {"a": perfect, "b": collapsed, "c": one}, title="Edge cases")
    ink = inked(tmp_path / "new/curves.png")
    assert all(ink[color] > 300 for color in plots.COLORS[:3]) and ink[plots.COLORS[4]] == 0
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["curves.png"]


def test_roc(tmp_path):
    rng = np.random.default_rng(0)
    matrix = rng.random((10, 40)).astype(np.float32)
    got = verification_from_blocks([(slice(0, 10), matrix)], SamePerson(np.arange(10) % 4, np.arange(40) % 4))
    plots.draw_roc(tmp_path / "roc.png", {"noise": got.roc}, title="ROC")
    assert inked(tmp_path / "roc.png")[plots.COLORS[0]] > 300


@pytest.mark.filterwarnings("error")
def test_roc_of_one_point_shows_it(tmp_path):
    point = {"collapsed": (np.ones(1), np.ones(1))}
    plots.draw_roc(tmp_path / "roc.png", point, title="ROC")
    ink = inked_pixels(tmp_path / "roc.png", plots.COLORS[0])
    assert ink[: len(ink) // 2].sum() > 50  # the legend is below


def test_nothing_is_cut_off_or_covered(tmp_path):
    never = evaluate_retrieval(np.ones((1, 2)), np.ones((80, 2)), [0], [0, *range(1, 80)])
    names = [f"a feature of a rather long name {number}" for number in range(8)]
    plots.draw_curves(tmp_path / "curves.png", dict.fromkeys(names, never), title="Many")
    pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("L"))
    assert (pixels[:, [0, -1]] == 255).all()
    plots.draw_curves(tmp_path / "zero.png", {"never": never}, title="A match at rank 80")
    ink = inked_pixels(tmp_path / "zero.png", plots.COLORS[0])
    assert ink[:, : ink.shape[1] // 3].sum(1).max() > 500  # the CMC stays at 0


def test_captions_of_the_worst_queries_are_whole(tmp_path):
    images = [Image.new("RGB", (32, 64), "gray")] * 2
    ranking = Ranking(np.array([[0, 1]]), np.zeros((1, 2), dtype=np.float32))
    sheets = []
    for title in ("AP 3.1 %, 12 matches", "AP 3.1 %, 12 matchers"):
        ranked_sheet(tmp_path / "worst.png", images[:1], images, ranking, query_titles=[title])
        sheets.append(np.asarray(Image.open(tmp_path / "worst.png")))
    assert (sheets[0] != sheets[1]).any()


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'mllmreid\[plots\]'"):
        plots.draw_roc(tmp_path / "roc.png", {}, title="ROC")
    assert not list(tmp_path.iterdir())
