"""Pictures: they exist whole, show every result, and say what is missing without matplotlib."""

import sys

import numpy as np
import pytest
from PIL import Image

from modeling_mllmreid.errors import UserError
from modeling_mllmreid.evaluation import evaluate_retrieval, plots
from modeling_mllmreid.evaluation.verification import verification_from_blocks
from modeling_mllmreid.retrieval import SamePerson

EYE = np.eye(4, dtype=np.float32)


def inked(path) -> dict[str, int]:
    """How many pixels have (nearly) each of the palette's colours."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    colors = {c: np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in plots.COLORS}
    return {name: int((np.abs(pixels - color).max(2) < 8).sum()) for name, color in colors.items()}


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
    plots.draw_roc(tmp_path / "roc.png", {"noise": got.roc, "perfect": (np.ones(1), np.ones(1))}, title="ROC")
    assert inked(tmp_path / "roc.png")[plots.COLORS[0]] > 300


def test_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'mllmreid\[plots\]'"):
        plots.draw_roc(tmp_path / "roc.png", {}, title="ROC")
    assert not list(tmp_path.iterdir())
