"""The processes that a launcher started, of which this is one."""

import os
from collections.abc import Mapping

import torch
from accelerate import DistributedType, PartialState

from .errors import UserError

# What a launcher tells each of its processes: torchrun, Open MPI, Intel MPI and Slurm's PMI, MVAPICH2.
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def this_process() -> PartialState:
    """This process's place among all, with the device that is its own; alone where nothing was launched.

    Without a GPU the backend must be asked for: several processes would each take themselves for the only one. Raises
    UserError as `refuse_lost_processes`.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    refuse_lost_processes(state, os.environ)
    return state


def refuse_lost_processes(state: PartialState, environ: Mapping[str, str]) -> None:
    """Raises UserError where a launch was meant for several processes, or for FSDP, and is not that.

    Each of several such processes would take itself for the only one, train on everything and write over the others.
    environ: what the launcher left. `accelerate launch` with `--cpu`, or with neither `--multi_gpu` nor a configuration
    that says so, starts one process whatever `--num_processes` is, and leaves a MASTER_ADDR alone.
    """
    mend = (
        "start them with accelerate launch --multi_gpu --num_processes {0} run_reid.py ..., without GPUs with torchrun "
        "--nproc_per_node {0} run_reid.py ... (train: --use_cpu true)"
    )
    asked = max(WORLD_SIZES, key=lambda name: _count(environ, name))
    count = _count(environ, asked)
    if state.num_processes == 1 and count > 1:
        raise UserError(f"{asked} is {count}, but this process is alone: {mend.format(count)}")
    # Only accelerate's launcher of a single process leaves the first of the two.
    if state.num_processes == 1 and count == 0 and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= environ.keys():
        raise UserError(
            "accelerate launch was told several processes and started one: "
            f"{mend.format('N')}; where one is meant, unset MASTER_ADDR"
        )
    if environ.get("ACCELERATE_USE_FSDP") == "true" and state.distributed_type == DistributedType.MULTI_CPU:
        raise UserError(
            "FSDP was asked for, and without GPUs accelerate makes plain DDP of it: leave the FSDP configuration out"
        )


def _count(environ: Mapping[str, str], name: str) -> int:
    """A number of processes in the environment; 0 where none is told."""
    value = environ.get(name, "")
    return int(value) if value.isdecimal() else 0
