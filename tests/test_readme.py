"""The README's lines for features of other toolkits do what it says, and its table has every reader."""

import re
from pathlib import Path

import numpy as np

from modeling_mllmreid.data.readers import READERS
from modeling_mllmreid.evaluation.metrics import evaluate_retrieval

README = Path(__file__).parents[1] / "README.md"


def test_features_of_other_toolkits_in_five_lines(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (code,) = (block for block in blocks if "features.npz" in block)
    assert len([line for line in code.splitlines() if line]) == 5
    rng = np.random.default_rng(0)
    sides = {name: rng.normal(size=(count, 8)) for name, count in (("query", 12), ("gallery", 50))}
    ids = {f"{name[0]}_ids": rng.integers(0, 5, len(rows)) for name, rows in sides.items()}
    cameras = {f"{name[0]}_cameras": rng.integers(0, 3, len(rows)) for name, rows in sides.items()}
    np.savez(tmp_path / "features.npz", **sides, **ids, **cameras)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    expected = evaluate_retrieval(*sides.values(), *ids.values(), *cameras.values())
    assert capsys.readouterr().out.split() == [str(x) for x in (expected.mAP, expected.cmc[1], expected.mINP)]


def test_the_table_of_layouts_names_every_reader():
    cells = [line.split("|")[1] for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    assert set(READERS) <= {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
