"""What a launcher left in the environment."""

from types import SimpleNamespace

import pytest
from accelerate import DistributedType

from modeling_mllmreid.errors import UserError
from modeling_mllmreid.processes import refuse_lost_processes


def state(processes: int, kind: DistributedType = DistributedType.NO) -> SimpleNamespace:
    return SimpleNamespace(num_processes=processes, distributed_type=kind)


@pytest.mark.parametrize(
    ("place", "environ", "said"),
    [
        (state(1), {"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but this process is alone: .*--num_processes 2"),
        (state(1), {"OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE is 4"),
        (state(1), {"WORLD_SIZE": "1", "PMI_SIZE": "3"}, "PMI_SIZE is 3"),
        (state(1), {"ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}, "told several processes"),
        (state(2, DistributedType.MULTI_CPU), {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}, "without GPUs"),
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
