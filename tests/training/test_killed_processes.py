"""Command-line trainings that are killed, in one process and in two, lose nothing."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from native import write_native
from safetensors.torch import load_file

from modeling_mllmreid.synthetic.flat.write import write_pedestrians
from modeling_mllmreid.training.progress import LOG_FILE
from modeling_mllmreid.training.resume import last_checkpoint

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the process table from /proc"),
]
ROOT = Path(__file__).parents[2]
KILLS = 30


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A LLaVA and people of the size of the demo, on disk."""
    root = tmp_path_factory.mktemp("world")
    write_pedestrians(root / "people", train_identities=100, test_identities=4, images_per_camera=5, cameras=4)
    write_native(root / "native", height=128, width=64, hidden_size=64, layers=2)
    return root


def command(world: Path, output: Path, processes: int, steps: int, every: int) -> list[str]:
    people = world / "people"
    flags = {
        "model": world / "native",
        "dataset": "market1501",
        "data_dir": people,
        "captions_file": people / "reid_raw.json",
        "target": "caption",
        "val_identities": 12,
        "height": 128,
        "width": 64,
        "identities_per_batch": 8 // processes,
        "learning_rate": 2e-3,
        "max_steps": steps,
        "save_strategy": "steps",
        "save_steps": every,
        "eval_strategy": "steps",
        "eval_steps": every,
        "output_dir": output,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(port)]
    return [*launcher, str(ROOT / "run_reid.py"), "train", *(f"--{name}={value}" for name, value in flags.items())]


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("w") as file:
        return subprocess.Popen(
            arguments, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def wait_for_training(process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 180
    while "training images of" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.05)


def to_the_end(arguments: list[str], log: Path) -> None:
    process = start(arguments, log)
    assert process.wait(1800) == 0, log.read_text()[-2000:]


def weights(folder: Path) -> dict:
    return load_file(folder / "model.safetensors")


def assert_equal(folder: Path, expected: Path) -> None:
    one, other = weights(folder), weights(expected)
    assert one.keys() == other.keys()
    assert all(one[name].equal(other[name]) for name in one)
    for name in ("trainer_state.json", LOG_FILE):
        histories = [re.sub(r'"train_\w+": [^,\n]+', "", (f / name).read_text()) for f in (folder, expected)]
        assert histories[0].replace(str(folder), "") == histories[1].replace(str(expected), ""), name


def test_thirty_kills_at_random_moments(world, tmp_path):
    steps, every = 1500, 25
    to_the_end(command(world, tmp_path / "whole", 1, steps, every), tmp_path / "whole.log")
    rng, log, output = random.Random(0), tmp_path / "killed.log", tmp_path / "killed"
    arguments = command(world, output, 1, steps, every)
    resumed = 0
    for _ in range(KILLS):
        process = start(arguments, log)
        wait_for_training(process, log)
        time.sleep(rng.uniform(0, 10))
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL, "it ended before it was killed: raise steps"
        resumed += "continues from" in log.read_text()
    assert resumed > KILLS // 2
    to_the_end(arguments, log)
    assert_equal(output, tmp_path / "whole")


def ranks(launcher: int) -> list[int]:
    """Returns the processes that a launcher started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(entry.read_text().rpartition(")")[2].split()[1]) == launcher:
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return sorted(found)


def test_one_of_two_processes_dies_and_a_launch_is_stopped(world, tmp_path):
    steps, every = 200, 10
    to_the_end(command(world, tmp_path / "whole", 2, steps, every), tmp_path / "whole.log")
    log, output = tmp_path / "killed.log", tmp_path / "killed"
    arguments = command(world, output, 2, steps, every)

    process = start(arguments, log)
    wait_for_new_checkpoint(output)
    os.kill(ranks(process.pid)[1], signal.SIGKILL)
    died = time.monotonic()
    assert process.wait(60) != 0 and time.monotonic() - died < 60
    assert not ranks(process.pid)

    process = start(arguments, log)
    wait_for_new_checkpoint(output)
    # The processes of a launcher are not in its group, so killing it alone would leave them running.
    for one in (process.pid, *ranks(process.pid)):
        os.kill(one, signal.SIGKILL)
    process.wait(30)

    process = start(arguments, log)
    wait_for_new_checkpoint(output)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    stopped = re.search(r"SIGTERM: stopped after step (\d+), checkpoint-\1 is written", log.read_text())
    assert stopped, log.read_text()[-2000:]
    to_the_end(arguments, log)
    assert f"continues from {output}/checkpoint-{stopped[1]}" in log.read_text()
    assert_equal(output, tmp_path / "whole")


def wait_for_new_checkpoint(output: Path) -> None:
    deadline, before = time.monotonic() + 180, last_checkpoint(output)
    while last_checkpoint(output) == before:
        assert time.monotonic() < deadline, "waited too long for a checkpoint"
        time.sleep(0.05)
