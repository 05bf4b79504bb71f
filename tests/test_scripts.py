"""The shell script of the real parts: its commands exist, and their options parse."""

import json
import os
import subprocess
import sys

import pytest
from command_lines import parse_only
from documents import ROOT

# In place of Python: notes the commands of the package and does nothing. Every other program, such as the question
# whether there is a GPU, fails.
SHIM = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1:3] != ["-m", "modeling_mllmreid"]:
    sys.exit(1)
with open(os.environ["NOTED"], "a") as file:
    file.write(json.dumps(sys.argv[3:]) + "\\n")
"""


@pytest.fixture
def commands(tmp_path):
    """commands(arguments): the command lines of a run of the script from nothing."""

    def run(*arguments):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin/python").write_text(SHIM)
        (tmp_path / "bin/python").chmod(0o755)
        noted = tmp_path / "noted.jsonl"
        noted.unlink(missing_ok=True)
        places = {"RUNS": str(tmp_path / "runs"), "OUTSIDE": str(tmp_path), "NOTED": str(noted)}
        environ = {**os.environ, **places, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        subprocess.run(["bash", str(ROOT / "benchmarks/real_parts.sh"), *arguments], env=environ, check=True)
        return [json.loads(line) for line in noted.read_text().splitlines()]

    return run


def test_real_parts_goes_from_the_packages_to_the_checkpoint(commands):
    names = [name for name, *_ in commands()]
    base = ["parts", "compose", "align", "train", "export", "continuations", "train", "export"]
    assert names == [*base, "prepare", "ablate", "train", "export", "train", "train", *["evaluate"] * 3]
    assert [name for name, *_ in commands("base")] == base
    assert [name for name, *_ in commands("checkpoint")] == [name for name in names if name != "ablate"]


def test_the_commands_of_real_parts_parse(commands, monkeypatch):
    for command, *argv in commands():
        parse_only(command, argv, monkeypatch)
