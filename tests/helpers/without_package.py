"""Runs code where this package is absent: in a new process forked from one that imported transformers alone.

An import of transformers takes seconds, so all tests of a pytest process share it.
"""

import json
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

SERVER = """
import json, os, sys, traceback
sys.modules["modeling_mllmreid"] = None
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, pipeline
assert not [name for name in sys.modules if name.startswith("modeling_mllmreid.")]
for line in sys.stdin:
    code, argv, folder, *files = json.loads(line)
    child = os.fork()
    if child == 0:
        # transformers asks whether it may run a checkpoint's code, and waits 15 s for an answer.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, file in enumerate(files, 1):
            os.dup2(os.open(file, os.O_WRONLY), number)
        os.chdir(folder)
        sys.argv, ended = ["-c", *argv], 1
        try:
            exec(compile(code, "<code without the package>", "exec"), {"__name__": "__main__"})
            ended = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(ended)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@cache
def _server() -> subprocess.Popen:
    """The process that forks. Isolated mode: neither the working folder nor PYTHONPATH; it ends with this process."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-I", "-c", SERVER], text=True, **pipes)


def run_without_package(code: str, *argv: Any, folder: Path) -> str:
    """Runs code in a folder with these arguments; returns what it prints. It must end without an exception."""
    server = _server()
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        server.stdin.write(json.dumps([code, list(map(str, argv)), str(folder), out.name, err.name]) + "\n")
        server.stdin.flush()
        assert server.stdout.readline() == "0\n", err.read()
        return out.read()
