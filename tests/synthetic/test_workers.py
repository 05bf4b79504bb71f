"""Worker processes: from any script, results in order, every way in which one of them can end."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from modeling_mllmreid.synthetic import workers, write
from modeling_mllmreid.synthetic.workers import map_in_processes, useful_processes
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.utils.errors import UserError

# Without `if __name__ == "__main__"`. It ends only if it is interrupted.
SCRIPT = """
import signal
import sys
from pathlib import Path
from modeling_mllmreid.synthetic.write import write_pedestrians
# A shell lets processes in the background ignore Ctrl-C, and they hand that down.
signal.signal(signal.SIGINT, signal.default_int_handler)
people = {"test_identities": 0, "images_per_camera": 1, "cameras": 2, "processes": 2}
write_pedestrians(Path(sys.argv[1]) / "few", train_identities=3, **people)
print("written", flush=True)
write_pedestrians(Path(sys.argv[1]) / "many", train_identities=9999, **people)
"""


@pytest.fixture(autouse=True)
def no_worker_is_left():
    # Other tests of this process may have started processes that last.
    before = {child.pid for child in psutil.Process().children()}
    yield
    assert {child.pid for child in psutil.Process().children()} <= before


def test_results_are_in_the_order_of_the_items():
    items = [float(number) for number in range(11)]
    for processes in (1, 2, 3, 20):
        assert list(map_in_processes(math.sqrt, items, processes)) == [math.sqrt(number) for number in items]
    assert list(map_in_processes(math.sqrt, [], 2)) == []


def test_workers_import_only_what_rendering_needs():
    """They are other processes, each with one thread, and find modules where this process does."""
    script = "import json, os, sys; import modeling_mllmreid.synthetic.write; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(next(map_in_processes(subprocess.getoutput, [f"{sys.executable} -c '{script}'"] * 2, 2)))
    assert "numpy" in loaded and not {"torch", "transformers", "datasets"} & set(loaded)
    assert os.getpid() not in set(map_in_processes(eval, ["__import__('os').getpid()"] * 4, 2))
    threads, path = map_in_processes(eval, ["__import__('os').environ['OMP_NUM_THREADS']", "__import__('sys').path"], 2)
    assert threads == "1" and path == sys.path


def test_what_a_worker_prints_is_no_result(capfd):
    assert list(map_in_processes(print, ["one", "two"], 2)) == [None, None]
    printed = capfd.readouterr()
    assert printed.out == "" and "one" in printed.err and "two" in printed.err


def test_an_exception_of_the_function_is_raised_with_its_traceback():
    with pytest.raises(FileNotFoundError) as caught:
        list(map_in_processes(os.listdir, ["/", "/no such folder"], 2))
    assert caught.value.filename == "/no such folder" and "in _answer" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match="^ValueError: math domain error|^ValueError: expected a nonneg") as caught:
        list(map_in_processes(math.sqrt, [1.0, -1.0], 2))
    assert "in _answer" in caught.value.__notes__[0]


def test_killed_workers_are_named():
    for number, how in ((signal.SIGKILL, "was killed by signal 9"), (signal.SIGTERM, "was killed by signal 15")):
        with pytest.raises(UserError, match=f"^a process that renders people {how}: start again; if the memory"):
            list(map_in_processes(signal.raise_signal, [number] * 2, 2))
    with pytest.raises(UserError, match="renders people ended with exit code 3: start again"):
        list(map_in_processes(os._exit, [3, 3], 2))


def test_a_worker_that_cannot_start_is_named(monkeypatch):
    monkeypatch.setattr(workers, "START", "import os; os._exit(5)")
    with pytest.raises(UserError, match="renders people ended with exit code 5"):
        # More bytes than a pipe holds.
        list(map_in_processes(len, ["x" * 200_000] * 2, 2))


def test_a_killed_worker_leaves_no_folder(tmp_path, monkeypatch):
    def kill(results, **_):
        for result in results:
            for worker in psutil.Process().children():
                if "modeling_mllmreid.synthetic.workers" in " ".join(worker.cmdline()):
                    worker.kill()
            yield result

    monkeypatch.setattr(write, "tqdm", kill)
    with pytest.raises(UserError, match="a process that renders people was killed by signal 9"):
        write_pedestrians(tmp_path / "set", train_identities=500, processes=2)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def script(tmp_path):
    """A script that renders many people, and its workers."""
    (tmp_path / "script.py").write_text(SCRIPT)
    # The worker must not import the modules of the current folder.
    (tmp_path / "json.py").write_text("raise SystemExit('another json')")
    command, pipe = [sys.executable, "-P", "script.py", "."], subprocess.PIPE
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=pipe, stderr=pipe)
    assert process.stdout.readline() == b"written\n"
    while not list(tmp_path.glob(".many*/*/*.jpg")):
        time.sleep(0.05)
    started = psutil.Process(process.pid).children()
    assert len(started) == 2
    yield process, started
    assert not psutil.wait_procs(started, timeout=20)[1]


def test_a_script_without_main_guard_starts_workers_and_ctrl_c_ends_them(script, tmp_path):
    process, _ = script
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=20)[1].decode()
    assert error.endswith("KeyboardInterrupt\n") and error.count("Traceback") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["few", "json.py", "script.py"]
    assert len(list(tmp_path.glob("few/*/*.jpg"))) == 6


def test_workers_end_without_a_word_when_their_parent_is_killed(script):
    process, _ = script
    process.kill()
    assert b"Error" not in process.communicate(timeout=20)[1]
    program = workers.START.format(module="builtins", name="len")
    command = [sys.executable, "-c", program, *sys.path]
    early = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    assert (early.returncode, early.stdout, early.stderr) == (1, b"", b"")


def test_useful_processes(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(24)))
    assert [useful_processes(people) for people in (0, 5, 39, 40, 100, 5000)] == [1, 1, 1, 2, 5, 16]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert [useful_processes(people) for people in (39, 5000)] == [1, 3]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "48")
    assert useful_processes(5000) == 1
