"""The commands of the first pages, run as a new user runs them: README, quickstart, own crops."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
from documents import ROOT, code_blocks

# What needs the Hub or a GPU, what installs, what serves until it is stopped, and what other tests run (the demo).
LEFT_OUT = ("facebook/", "llava_1_5_7b", "pip install", "mllmreid serve", "mllmreid demo")
PAGES = [ROOT / "README.md", ROOT / "docs/quickstart.md", ROOT / "docs/own_crops.md"]


def commands():
    """The command lines of the pages in order, each once."""
    blocks = [block for page in PAGES for block in code_blocks(page, "bash")]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in dict.fromkeys(lines) if not any(word in line for word in LEFT_OUT)]


def make_crops(village, crops):
    """A folder for each of 40 people of a rendered world."""
    for image in sorted((village / "bounding_box_train").iterdir()):
        person = crops / f"P{image.name.partition('_')[0]}"
        if person.is_dir() or len(os.listdir(crops)) < 40:
            person.mkdir(exist_ok=True)
            shutil.copy(image, person / image.name)


@pytest.mark.slow
def test_the_commands_of_the_first_pages_run(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    (tmp_path / "CROPS").mkdir()
    ran = []
    for line in commands():
        program, *words = shlex.split(line, comments=True)
        assert program == "mllmreid", line
        command = [sys.executable, "-m", "modeling_mllmreid", *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        ran.append(words[0])
        if words[0] == "evaluate" and not any((tmp_path / "CROPS").iterdir()):
            make_crops(tmp_path / "data/village", tmp_path / "CROPS")
            shutil.copy(next((tmp_path / "data/village/query").iterdir()), tmp_path / "person.jpg")
    assert {"evaluate", "embed", "search", "train", "gallery", "data"} <= set(ran)
    assert (tmp_path / "sheet.png").is_file() and (tmp_path / "runs/own_crops/model.safetensors").is_file()
