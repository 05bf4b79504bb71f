"""What a launcher left in the environment."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from accelerate import DistributedType

from modeling_mllmreid.utils.errors import UserError
from modeling_mllmreid.utils.processes import LAUNCHED, Place, claim_message, place, refuse_lost_processes, this_process


def state(processes: int, kind: DistributedType = DistributedType.NO) -> SimpleNamespace:
    return SimpleNamespace(num_processes=processes, distributed_type=kind)


@pytest.mark.parametrize(
    ("place", "environ", "said"),
    [
        (state(1), {"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but this process is alone: .*--num_processes 2"),
        (state(1), {"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE is 4"),
        (state(1), {"WORLD_SIZE": "1", "PMI_SIZE": "3"}, "PMI_SIZE is 3"),
        (state(1), {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}, "asked for several processes"),
        (state(2, DistributedType.MULTI_CPU), {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, "FSDP needs GPUs"),
    ],
)
def test_a_launch_that_lost_its_processes_is_refused(place, environ, said):
    with pytest.raises(UserError, match=said):
        refuse_lost_processes(place, environ)


@pytest.mark.parametrize(
    ("place", "environ"),
    [
        (state(1), {}),
        (state(1), {"WORLD_SIZE": "1", "ACCELERATE_USE_CPU": "false", "MASTER_ADDR": "127.0.0.1"}),
        (state(1), {"ACCELERATE_USE_CPU": "false"}),
        (state(1), {"MASTER_ADDR": "127.0.0.1"}),
        (state(1), {"WORLD_SIZE": "several"}),
        (state(2, DistributedType.MULTI_CPU), {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}),
        (state(2, DistributedType.MULTI_GPU), {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}),
    ],
)
def test_a_launch_that_is_what_was_meant_goes_on(place, environ):
    refuse_lost_processes(place, environ)


def test_of_the_processes_of_a_launch_the_first_says_a_mistake(monkeypatch):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    launched = {"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": "2"}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.port)}
    for name, value in {**launched, **place}.items():
        monkeypatch.setenv(name, value)
    said = [claim_message("a"), claim_message("a"), claim_message("of one alone")]
    assert said == [True, False, True]
    monkeypatch.delenv("MASTER_PORT")
    assert claim_message("a")


def test_the_place_of_a_process(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    assert place() == Place(rank=0, processes=1)
    this_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="WORLD_SIZE is 2, but this process is alone"):
        place()


@pytest.mark.slow
def test_two_processes_say_their_common_mistake_once():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*command, "run_reid.py", "embed", "--modle", "x"], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert lines == ["error: embed: unknown field '--modle': did you mean '--model'?"]
