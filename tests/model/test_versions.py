"""A checkpoint's code names the versions that it needs, before it fails under others."""

import configparser
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from travelling_code import FORMS, write
from without_package import run_without_package

import modeling_mllmreid.model
from modeling_mllmreid.model.versions import NEEDED, check_versions

ROOT = Path(__file__).parents[2]
CODE = Path(modeling_mllmreid.model.__file__).parent
IMPORTED = re.compile(r"^\s*from\s+\.(\w+)\s+import", re.MULTILINE)  # as transformers finds them

OLD_TRANSFORMERS = (
    "MLLMReID needs transformers>=5.23,<6; installed: transformers {}: pip install 'transformers>=5.23,<6'"
)
OLD_TORCH = "MLLMReID needs torch>=2.6; installed: torch {}: pip install 'torch>=2.6'"
OLD_PYTHON = (
    "MLLMReID needs Python>=3.11, transformers>=5.23,<6; installed: Python 3.10.13, transformers 5.20.2: "
    "pip install 'transformers>=5.23,<6'"
)
OLD_ALL = (
    "MLLMReID needs torch>=2.6, transformers>=5.23,<6; installed: torch 2.5.0, transformers 5.9.0: "
    "pip install 'torch>=2.6' 'transformers>=5.23,<6'"
)
# Sets another version before the code of a checkpoint is read; -I leaves the package and the folders of tests out.
CLEAN_PROCESS = """
import json, runpy, sys
from pathlib import Path
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
helper, folder = sys.argv[1:]
# Only now, since those imports reload transformers.
sys.modules["transformers"].__version__ = "5.17.0"
print("ends" + json.dumps(runpy.run_path(helper)["read"](Path(folder))))
"""


def imported(name: str) -> set[str]:
    """The files that a file imports from, at any depth of its code."""
    return set(IMPORTED.findall((CODE / f"{name}.py").read_text()))


@pytest.mark.parametrize(
    ("versions", "message"),
    [
        ({"transformers": "5.23.0"}, None),
        ({"transformers": "5.100.0.dev0", "torch": "2.6.0+cu124"}, None),
        ({"torch": "3.0.0a0+git0123456"}, None),
        ({"transformers": "5.22.2"}, OLD_TRANSFORMERS),
        ({"transformers": "4.57.6"}, OLD_TRANSFORMERS),
        ({"transformers": "6.0.0.dev0"}, OLD_TRANSFORMERS),
        ({"torch": "2.5.1+cu121"}, OLD_TORCH),
        ({"torch": "1.13.1"}, OLD_TORCH),
        ({"transformers": "5.9.0", "torch": "2.5.0"}, OLD_ALL),
        ({"transformers": "5.20.2", "python": (3, 10, 13, "final", 0)}, OLD_PYTHON),
        (
            {"python": (3, 9, 1, "final", 0)},
            "MLLMReID needs Python>=3.11; installed: Python 3.9.1: make an environment",
        ),
    ],
)
def test_the_needed_versions_are_one_line(monkeypatch, versions, message):
    for name, version in versions.items():
        if name == "python":
            monkeypatch.setattr(sys, "version_info", version)
        else:
            monkeypatch.setattr({"torch": torch, "transformers": transformers}[name], "__version__", version)
    if message is None:
        check_versions()
    else:
        with pytest.raises(ImportError) as caught:
            check_versions()
        assert str(caught.value).startswith(message.format(*versions.values()))


def test_every_way_to_load_a_checkpoint_reports_the_versions(tmp_path):
    write(tmp_path)
    helper = ROOT / "tests/helpers/travelling_code.py"
    printed = run_without_package(CLEAN_PROCESS, helper, tmp_path, folder=tmp_path)
    ends = json.loads(printed.split("ends")[1])
    assert len(ends) == 4 * len(FORMS)
    assert set(ends.values()) == {"ImportError: " + OLD_TRANSFORMERS.format("5.17.0")}


@pytest.mark.parametrize(
    "entry", ["configuration_mllmreid", "processing_mllmreid", "configuration_vision_mllmreid", "vision_mllmreid"]
)
def test_an_entry_names_every_file_that_it_needs(entry):
    # Else transformers before 5.11 stops with a FileNotFoundError, before `versions` is run.
    named, needed, left = imported(entry), set(), [entry]
    while left:
        new = imported(left.pop()) - needed
        needed |= new
        left += new
    assert named >= needed - {entry}, f"{entry}.py: travelling_code() must import from these files too"


def test_versions_come_first():
    entries = list(CODE.glob("*_mllmreid.py"))
    assert len(entries) == 7
    for path in entries:
        first = re.search(r"^(from|import) .*", path.read_text(), re.MULTILINE)
        assert first.group().startswith("from .versions import"), path.name


def test_the_package_needs_no_less():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    requirements = setup["options"]["install_requires"].split()
    lowest, too_new = NEEDED["transformers"]
    assert f"transformers>={lowest},<{too_new}" in requirements
