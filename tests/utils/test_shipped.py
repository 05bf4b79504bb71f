"""Recipes, launch configurations and card templates are found by name, from a checkout and from a wheel."""

import configparser
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from modeling_mllmreid.commands import configs
from modeling_mllmreid.model.shipped_models import PRETRAINED
from modeling_mllmreid.utils import shipped
from modeling_mllmreid.utils.errors import UserError
from modeling_mllmreid.utils.shipped import CONFIGS, PACKAGE, find_deepspeed_file, recipe_path

ROOT = Path(__file__).parents[2]
BUILT_FROM = (
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "run_reid.py",
    "configs",
    "model_cards",
    "modeling_mllmreid",
)
SMALL_DEMO = (
    "--train_identities 10 --test_identities 4 --images_per_camera 2 --cameras 2 --height 64 --width 32 --scenes 3 "
    "--hidden_size 32 --tower_layers 1 --lm_layers 1 --pretraining_people 50 --pretraining_steps 3 --max_steps 4 "
    "--identities_per_batch 3 --images_per_identity 2 --val_identities 3 --eval_steps 2 --save_steps 2 "
    "--warmup_steps 1 --logging_steps 2 --dataloader_num_workers 0"
)


def test_a_recipe_is_named_without_a_path_and_a_file_that_is_here_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    for name in ("demo", "demo.yaml"):
        assert recipe_path(name, "demo") == CONFIGS / "demo.yaml"
    (tmp_path / "demo.yaml").write_text("seed: 1")
    assert recipe_path("demo.yaml", "demo") == Path("demo.yaml")
    assert recipe_path("configs/absent.yaml", "demo") == Path("configs/absent.yaml")


def test_an_unknown_recipe_lists_near_names_in_one_line():
    near = "llava_1_5_7b_qlora_24gb, llava_1_5_7b_qlora_16gb, llava_1_5_7b_lora_80gb"
    with pytest.raises(UserError) as error:
        recipe_path("llava_qlora.yaml", "train")
    assert str(error.value) == (
        f"train: llava_qlora.yaml: no such file and no such recipe: did you mean one of {near}?"
    )


def test_configs_lists_every_shipped_file_and_prints_the_path_of_one(capsys):
    configs.main([])
    listed = capsys.readouterr().out
    paths = [path for path in CONFIGS.rglob("*") if path.is_file()]
    assert len(paths) > 15 and listed.startswith(f"{CONFIGS}\n")
    for path in paths:
        assert f"\n  {path.stem} " in listed or f"\n  {path.stem}\n" in listed
        configs.main([path.stem])
        assert capsys.readouterr().out == f"{path}\n"
    with pytest.raises(UserError, match="configs: one_nod: is not shipped: did you mean one of one_node_"):
        configs.main(["one_nod"])


def test_deepspeed_finds_the_shipped_file_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, found in (
        ("configs/deepspeed/zero2.json", str(CONFIGS / "deepspeed/zero2.json")),
        ("configs/deepspeed/mine.json", "configs/deepspeed/mine.json"),
    ):
        monkeypatch.setenv(shipped.DEEPSPEED_FILE, name)
        find_deepspeed_file()
        assert os.environ[shipped.DEEPSPEED_FILE] == found


def test_every_package_of_the_tree_is_installed():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "modeling_mllmreid").rglob("__init__.py")}
    mapped = {"modeling_mllmreid.configs", "modeling_mllmreid.model_cards"}
    assert set(setup["options"]["packages"].split()) == {name.replace("/", ".") for name in packages} | mapped


def test_hints_name_extras_that_there_are():
    """By the name of the package: `.[extra]` works in the checkout alone, and the command runs anywhere."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    code = "".join(path.read_text() for path in (ROOT / "modeling_mllmreid").rglob("*.py"))
    hints = re.findall(r"pip install '([^\[']*)\[([\w,]+)\]'", code)
    assert len(hints) > 8 and {package for package, _ in hints} == {"mllmreid"}
    assert {extra for _, extras in hints for extra in extras.split(",")} <= set(setup["options.extras_require"])


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the content of a wheel that was built from a copy of the tree."""
    pytest.importorskip("setuptools", minversion="77", reason="setuptools of pyproject.toml is not installed")
    root = tmp_path_factory.mktemp("wheel")
    (root / "tree").mkdir()
    subprocess.run(["cp", "-r", *(str(ROOT / name) for name in BUILT_FROM), str(root / "tree")], check=True)
    code = f"from setuptools.build_meta import build_wheel; build_wheel({str(root)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=root / "tree", check=True, capture_output=True)
    with zipfile.ZipFile(next(root.glob("*.whl"))) as wheel:
        wheel.extractall(root / "installed")
    return root / "installed"


def run_installed(installed: Path, folder: Path, *argv: str) -> subprocess.CompletedProcess:
    """The command in a folder where only what is in the wheel can be found."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", "modeling_mllmreid", *argv]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_wheel_has_the_command_the_types_the_recipes_and_the_cards(installed, tmp_path):
    package = installed / "modeling_mllmreid"
    assert (package / "py.typed").is_file() and (package / "model_cards/card.md.jinja").is_file()
    for folder in ("configs", "model_cards"):
        files = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()}
        assert {path.relative_to(package / folder) for path in (package / folder).rglob("*") if path.is_file()} == files
    models = {path.relative_to(PACKAGE) for path in PRETRAINED.rglob("*") if path.is_file()}
    assert models and {path.relative_to(package) for path in (package / "pretrained").rglob("*.*")} == models
    entry = next(installed.glob("*.dist-info/entry_points.txt")).read_text()
    assert "mllmreid = modeling_mllmreid.commands.main:main" in entry
    done = run_installed(installed, tmp_path, "configs", "llava_1_5_7b_qlora_16gb")
    assert done.stdout == f"{package / 'configs/llava_1_5_7b_qlora_16gb.yaml'}\n"


@pytest.mark.slow
def test_the_demo_runs_from_a_wheel_in_an_empty_folder(installed, tmp_path):
    done = run_installed(installed, tmp_path, "demo", *SMALL_DEMO.split())
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"runs"} and (tmp_path / "runs/demo/sheet.png").is_file()
