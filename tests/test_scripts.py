"""The shell scripts of the real parts: their commands exist, and their options parse."""

import gzip
import json
import os
import shutil
import subprocess
import sys

import pytest
from command_lines import parse_only
from documents import ROOT

# In place of Python: notes the commands of the package and the scripts, and does nothing. A program in the command
# line, such as the question whether there is a GPU, fails unless it has the words in HOLDS.
SHIM = f"""#!{sys.executable}
import json, os, sys
if sys.argv[1] == "-c":
    sys.exit(os.environ["HOLDS"] not in sys.argv[2])
program, *command = sys.argv[1:]
command = command[1:] if program == "-m" else [os.path.basename(program), *command]
with open(os.environ["NOTED"], "a") as file:
    file.write(json.dumps(command) + "\\n")
"""


@pytest.fixture
def commands(tmp_path):
    """commands(script): the command lines of a script of the real parts, from nothing."""

    def run(script, holds="nothing", **settings):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin/python").write_text(SHIM)
        (tmp_path / "bin/python").chmod(0o755)
        noted = tmp_path / "noted.jsonl"
        noted.unlink(missing_ok=True)
        settings |= {"RUNS": str(tmp_path / "runs"), "OUTSIDE": str(tmp_path), "NOTED": str(noted), "HOLDS": holds}
        environ = {**os.environ, **settings, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        subprocess.run(["bash", str(ROOT / "benchmarks/real_parts" / script)], env=environ, check=True)
        return [json.loads(line) for line in noted.read_text().splitlines()]

    return run


PARTS = ["parts", "compose"]
FROM_BASE = [*PARTS, "low_rank.py", "prepare"]
TRAINED = [*["train"] * 4, "evaluate", "export", "low_rank.py"]
COMMANDS = {
    "base.sh": [*PARTS, "align", *["train", "export"] * 2, "continuations", "train", "export", "low_rank.py"],
    "ablation.sh": [*FROM_BASE, *["ablate"] * 4],
    "checkpoint.sh": [*FROM_BASE, "export", *TRAINED, "low_rank.py", *["evaluate"] * 3],
}


@pytest.mark.parametrize("script", COMMANDS)
def test_the_scripts_of_real_parts_run_commands_that_parse(commands, script, monkeypatch):
    lines = commands(script, REPEAT="true")
    assert [name for name, *_ in lines] == COMMANDS[script]
    for command, *argv in lines:
        if not command.endswith(".py"):
            parse_only(command, argv, monkeypatch)


def test_the_checkpoint_begins_with_the_trained_one(commands):
    lines = commands("checkpoint.sh")
    assert [name for name, *_ in lines] == [*FROM_BASE, "export", "low_rank.py", *["evaluate"] * 3]
    (_, apply) = (line for line in lines if line[0] == "low_rank.py")
    assert apply[1:] == ["apply", "base_llava_full", str(ROOT / "benchmarks/real_parts/checkpoint"), "checkpoint"]


@pytest.mark.parametrize(
    ("holds", "settings", "base_dtype", "compiled"),
    [
        ("nothing", {}, "float32", False),
        ("nothing", {"REPEAT": "true"}, "float32", False),
        # The kept runs are in float32. In another format they would not count.
        ("has_bfloat16()", {}, "float32", False),
        ("has_bfloat16()", {"REPEAT": "true"}, "bfloat16", True),
        ("cuda", {}, "float32", False),
        ("cuda", {"REPEAT": "true"}, "bfloat16", False),
    ],
)
def test_the_ablation_goes_on_in_the_format_of_the_kept_runs(commands, holds, settings, base_dtype, compiled):
    plans = [line for line in commands("ablation.sh", holds, **settings) if line[0] == "ablate"]
    for ablate in plans:
        assert ablate[ablate.index("--base_dtype") + 1] == base_dtype
        assert ablate[ablate.index("--bf16") + 1] == str(base_dtype == "bfloat16").lower()
        assert ablate[ablate.index("--use_cpu") + 1] == str(holds != "cuda").lower()
        assert ("--torch_compile" in ablate) == compiled
    bases = [ablate[ablate.index("--base_model") + 1] for ablate in plans]
    assert bases == ["base_llava", "composed", "composed", "base_llava"]


def test_finished_runs_are_kept_without_their_logs(tmp_path):
    (tmp_path / "real_parts").mkdir()
    script = shutil.copy(ROOT / "benchmarks/real_parts/keep.sh", tmp_path / "real_parts")
    work, kept = tmp_path / "work", tmp_path / "real_parts"
    of_s_d = ["ablation/runs/s-d-rendered-60-seed0-1", "ablation/runs/s-d-rendered-60-seed1-2"]
    b0, from_composed = "ablation/runs/b0-rendered-60-seed0-3", "ablation_from_composed/runs/b0-rendered-60-seed0-6"
    for run in (*of_s_d, b0, from_composed, "ablation/runs/.b0-4.part"):
        (work / run).mkdir(parents=True)
        for name in ("curves.json", "queries-0.npz", "log.txt"):
            (work / run / name).write_text(f"{name} of {run}")
        if run in of_s_d:
            (work / run / "agreement-0.json").write_text(f"texts of {run}")
            (work / run / "agreement-0.png").write_text("a picture")
        if not run.endswith(".part"):
            (work / run / "result.json").write_text("{}")
    (work / "ablation/runs/b0-rendered-60-seed1-5.log").write_text("unfinished")

    def keep():
        command = ["bash", str(script)]
        environ = {**os.environ, "RUNS": str(work)}
        return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout.split()

    assert keep() == [b0, *of_s_d, from_composed]
    always = {"result.json", "curves.json", "queries-0.npz"}
    # The report shows the texts of one run.
    content = {
        of_s_d[0]: always | {"agreement-0.json.gz", "agreement-0.png"},
        of_s_d[1]: always | {"agreement-0.json.gz"},
    }
    content |= {b0: always, from_composed: always}
    assert {str(run.relative_to(kept)): {file.name for file in run.iterdir()} for run in kept.glob("*/*/*")} == content
    packed = kept / of_s_d[1] / "agreement-0.json.gz"
    assert gzip.decompress(packed.read_bytes()).decode() == f"texts of {of_s_d[1]}"
    assert keep() == []
