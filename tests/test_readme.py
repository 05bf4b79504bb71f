"""README and docs: sizes, links, command lines and Python blocks are what the code accepts."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from command_lines import parse_command_lines, parse_only
from documents import PAGES, ROOT, code_blocks, inline_code

import modeling_mllmreid
from modeling_mllmreid import evaluate_retrieval
from modeling_mllmreid.commands import gallery
from modeling_mllmreid.commands.main import COMMANDS
from modeling_mllmreid.data.readers import READERS

README = ROOT / "README.md"
DEMO = "python -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt . && python run_reid.py demo"
TESTS = (
    "python -m venv .venv && . .venv/bin/activate && pip install -c constraints.txt -e '.[test]' && python -m pytest"
)
# Blocks that tests/hub/test_published_as_documented.py runs on a demo's checkpoint.
ON_A_CHECKPOINT = ("runs/demo", "you/pedestrians-reid")
# Blocks that tests/hub/test_shipped_model.py runs on the model in the package.
OF_THE_SHIPPED_MODEL = ("pedestrians-small", "runs/random_resnet")
# Blocks that tests/training/test_python_page.py runs one after the other, on own crops.
ON_OWN_CROPS = ("runs/mine", "runs/watched", "runs/plain")
# The block that tests/commands/test_gallery_command.py runs on a gallery.
ON_A_GALLERY = ("runs/gallery",)
# Flags of accelerate, torchrun, pip and mutmut.
OF_OTHERS = {"--config_file", "--num_processes", "--num_machines", "--machine_rank", "--main_process_ip"}
OF_OTHERS |= {"--nproc_per_node", "--help", "--help_all", "--version"}


def test_readme_is_short_and_holds_the_two_set_up_commands():
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert [line for line in lines if len(line) > 120] == []
    assert {DEMO, TESTS} <= set(lines)


def test_the_picture_is_small():
    assert (ROOT / "docs/images/ranked_sheet.png").stat().st_size < 300_000


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_resolve(page):
    links = re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    for link in (link for link in links if not link.startswith("https://")):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, link


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert all(f"]({page.name})" in index for page in PAGES if page.name != "README.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_command_lines_parse(page, monkeypatch):
    parse_command_lines(page, monkeypatch)


def test_flags_named_in_the_text_exist(monkeypatch):
    known = set(OF_OTHERS)
    names = [(command, []) for command in COMMANDS.keys() - {"configs", "gallery"}]
    names += [("gallery", [name]) for name in gallery.COMMANDS]
    for command, argv in names:
        for kind in parse_only(command, argv, monkeypatch, build=False):
            known |= {f"--{field.name}" for field in fields(kind)}
    codes = [code for page in PAGES for code in inline_code(page) if not code.startswith("python benchmarks/")]
    named = {flag for code in codes for flag in re.findall(r"(?<!\S)--\w+", code)}
    assert named - known == set()


def test_python_blocks_use_public_names_and_are_all_run_by_a_test():
    for page in PAGES:
        for code in code_blocks(page, "python"):
            imports = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.ImportFrom)]
            ours = [node for node in imports if node.module and node.module.startswith("modeling_mllmreid")]
            for node in ours:
                assert {alias.name for alias in node.names} <= {*modeling_mllmreid.__all__, "REID_METRIC"}, code
            markers = (*ON_A_CHECKPOINT, *OF_THE_SHIPPED_MODEL, *ON_A_GALLERY, *ON_OWN_CROPS)
            assert any(name in code for name in ("features.npz", "REID_METRIC", *markers)), code


@pytest.fixture
def features(tmp_path, monkeypatch):
    """features.npz in the working folder; the metrics that are right for it."""
    rng = np.random.default_rng(0)
    sides = {name: rng.normal(size=(count, 8)) for name, count in (("query", 12), ("gallery", 50))}
    ids = {f"{name[0]}_ids": rng.integers(0, 5, len(side)) for name, side in sides.items()}
    cameras = {f"{name[0]}_cameras": rng.integers(0, 3, len(side)) for name, side in sides.items()}
    np.savez(tmp_path / "features.npz", **sides, **ids, **cameras)
    monkeypatch.chdir(tmp_path)
    return evaluate_retrieval(*sides.values(), *ids.values(), *cameras.values()), evaluate_retrieval(
        *sides.values(), *ids.values(), *cameras.values(), metric="euclidean"
    )


def run_block(page: Path, marker: str) -> None:
    """Runs the only Python block of a page with the marker."""
    (code,) = (code for code in code_blocks(page, "python") if marker in code)
    exec(compile(code, page.name, "exec"), {})


@pytest.mark.parametrize("page", [README, ROOT / "docs/evaluation.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_features_of_other_toolkits_in_five_lines(page, features, capsys):
    (code,) = (code for code in code_blocks(page, "python") if "metrics = evaluate_retrieval(" in code)
    assert len([line for line in code.splitlines() if line]) == 5
    run_block(page, "metrics = evaluate_retrieval(")
    assert capsys.readouterr().out.split() == [str(x) for x in (features[0].mAP, features[0].cmc[1], features[0].mINP)]


def test_intervals_and_a_paired_difference(features, capsys):
    run_block(ROOT / "docs/evaluation.md", "confidence_intervals(")
    interval, change = capsys.readouterr().out.splitlines()
    assert interval.startswith(f"mAP {features[0].mAP:.1%} [") and change.startswith("all - half: ")


def test_a_matrix_of_distances(features, capsys):
    run_block(ROOT / "docs/evaluation.md", "metrics_from_blocks(")
    assert float(capsys.readouterr().out) == pytest.approx(features[1].mAP, abs=1e-12)


def test_the_module_of_the_evaluate_library(features):
    run_block(ROOT / "docs/evaluation.md", "REID_METRIC")


def test_the_table_of_layouts_names_every_reader():
    lines = (ROOT / "docs/data.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[1] for line in lines if line.startswith("| `")]
    assert set(READERS) <= {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
