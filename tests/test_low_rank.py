"""benchmarks/real_parts/low_rank.py: a trained model as a small change of the model before it."""

import subprocess
import sys

import pytest
import torch
from documents import ROOT
from safetensors.torch import load_file, save_file

SCRIPT = ROOT / "benchmarks/real_parts/low_rank.py"


def run(*arguments):
    """Runs the script."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def folders(tmp_path):
    """folders(after): a model before and after its training, as folders."""
    torch.manual_seed(0)
    before = {
        "layer.weight": torch.randn(48, 32),
        "patches.weight": torch.randn(40, 3, 4, 4),
        "positions": torch.randn(1, 50, 40),
        "projector.weight": torch.randn(32, 32),
        "norm.bias": torch.randn(32),
        "frozen.weight": torch.randn(64, 32),
    }

    def write(after):
        for name, weights in (("before", before), ("after", {**before, **after(before)})):
            (tmp_path / name).mkdir()
            save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
            (tmp_path / name / "tokenizer.json").write_text("{}")
            (tmp_path / name / "README.md").write_text(name)
        return tmp_path

    return write


def low_rank(shape, rank):
    """A matrix of a low rank, in `shape`."""
    rows, columns = shape[0], int(torch.Size(shape[1:]).numel())
    return 0.01 * (torch.randn(rows, rank) @ torch.randn(rank, columns)).view(shape)


def test_a_change_of_low_rank_is_written_and_applied(folders):
    def trained(before):
        return {
            "layer.weight": before["layer.weight"] + low_rank((48, 32), 4),
            "patches.weight": before["patches.weight"] + low_rank((40, 3, 4, 4), 4),
            "positions": before["positions"] + low_rank((50, 40), 4)[None],
            "projector.weight": before["projector.weight"] + 0.01 * torch.randn(32, 32),
            "norm.bias": before["norm.bias"] + 0.01 * torch.randn(32),
            "new_norm.running_mean": torch.randn(32),
            "new_norm.num_batches_tracked": torch.tensor(301),
        }

    root = folders(trained)
    assert "keep 100.0%" in run(
        "write",
        root / "before",
        root / "after",
        root / "change",
        "--rank",
        8,
        "--share",
        0.9999,
        "--whole",
        "projector",
    )
    assert sorted(path.name for path in (root / "change").iterdir()) == ["README.md", "change.safetensors"]
    change = load_file(root / "change/change.safetensors")
    assert change["layer.weight.left"].shape == (48, 4) and change["patches.weight.right"].shape == (4, 48)
    assert {"positions.left", "projector.weight", "norm.bias"} < set(change)
    assert not [name for name in change if name.startswith("frozen")]

    run("apply", root / "before", root / "change", root / "again")
    before, after, again = (load_file(root / name / "model.safetensors") for name in ("before", "after", "again"))
    assert set(again) == set(after)
    for name, weight in after.items():
        if name.startswith("new"):
            assert torch.equal(again[name], weight), name
            continue
        moved = (weight - before[name]).abs().max()
        assert (again[name] - weight).abs().max() <= 0.02 * moved, name
    assert torch.equal(again["frozen.weight"], before["frozen.weight"])
    assert (root / "again/README.md").read_text() == "after"
    assert (root / "again/tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("settings", [("--rank", 1), ("--share", 0.7)])
def test_a_change_of_full_rank_loses_its_smallest_parts(folders, settings):
    torch.manual_seed(1)
    values = torch.tensor([4.0, 2.0, 1.0, *[0.01] * 29])
    left, right = (torch.linalg.qr(torch.randn(size, 32)).Q for size in (48, 32))
    root = folders(lambda before: {"layer.weight": before["layer.weight"] + (left * values) @ right.T})
    # 16 of 21 without the two smaller of the large singular values.
    assert "keep 76.2%" in run("write", root / "before", root / "after", root / "change", *settings)
