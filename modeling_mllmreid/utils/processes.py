"""The processes of a launch: their number, and the objects that they exchange in addition to gradients."""

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from accelerate import DistributedType, PartialState

from .errors import UserError

logger = logging.getLogger(__name__)


Value = TypeVar("Value")
Given = ParamSpec("Given")

# Variables that launchers set: torchrun, Open MPI, Intel MPI and Slurm's PMI, MVAPICH2.
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
# The others wait while process 0 works alone, on pictures or a re-ranking: a GPU's own group gives up in ten minutes.
PATIENCE = timedelta(days=1)


def this_process() -> PartialState:
    """Returns this process's rank, the number of processes, and its device.

    Without a GPU the CPU must be requested, or each process would run as the only one. Raises UserError as
    `refuse_lost_processes`.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    refuse_lost_processes(state, os.environ)
    warn_idle_gpus(state)
    return state


def warn_idle_gpus(state: PartialState) -> None:
    """Warns once that a single process uses only one of several GPUs."""
    gpus = torch.cuda.device_count()
    if state.num_processes == 1 and state.device.type == "cuda" and gpus > 1:
        _warn_once(
            f"{gpus} GPUs, and this process uses one of them, {state.device}: for all of them start accelerate launch "
            f"--multi_gpu --num_processes {gpus} run_reid.py ...; CUDA_VISIBLE_DEVICES chooses one"
        )


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def refuse_lost_processes(state: PartialState, environ: Mapping[str, str]) -> None:
    """Raises UserError if several processes or FSDP were requested, and each process runs alone.

    Each process would train on all data and overwrite the results of the others. `environ` is the environment that the
    launcher set. `accelerate launch` without `--multi_gpu`, or with `--cpu`, ignores `--num_processes`, starts one
    process and sets only MASTER_ADDR.
    """
    fix = (
        "start them with accelerate launch --multi_gpu --num_processes {0} run_reid.py ..., without GPUs with torchrun "
        "--nproc_per_node {0} run_reid.py ... (train: --use_cpu true)"
    )
    asked = max(WORLD_SIZES, key=lambda name: _count(environ, name))
    count = _count(environ, asked)
    if state.num_processes == 1 and count > 1:
        raise UserError(f"{asked} is {count}, but this process is alone: {fix.format(count)}")
    # Only accelerate's launcher of a single process leaves the first of the two.
    if state.num_processes == 1 and count == 0 and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= environ.keys():
        raise UserError(
            "accelerate launch was told several processes and started one: "
            f"{fix.format('N')}; for one process, unset MASTER_ADDR"
        )
    if environ.get("ACCELERATE_USE_FSDP") == "true" and state.distributed_type == DistributedType.MULTI_CPU:
        raise UserError(
            "FSDP was asked for, and without GPUs accelerate makes plain DDP of it: leave the FSDP configuration out"
        )


def _count(environ: Mapping[str, str], name: str) -> int:
    """Returns a number of processes from the environment; 0 if it is not set."""
    value = environ.get(name, "")
    return int(value) if value.isdecimal() else 0


def raise_together(value: Value | UserError) -> Value:
    """Returns the value if no process has a UserError; otherwise raises the first UserError on every process.

    All processes call it at the same place: the others would wait forever for a process that ends alone.
    """
    if this_process().num_processes > 1:
        errors: list[UserError | None] = [None] * this_process().num_processes
        dist.all_gather_object(errors, value if isinstance(value, UserError) else None, group=_objects())
        value = next((error for error in errors if error is not None), value)
    if isinstance(value, UserError):
        raise value
    return value


def on_main(function: Callable[Given, Value], *args: Given.args, **kwargs: Given.kwargs) -> Value:
    """Calls a function on process 0 and returns its result, or raises its UserError, on every process.

    All processes call `on_main`.
    """
    state = this_process()
    if state.num_processes == 1:
        return function(*args, **kwargs)
    result: list[Value | UserError | None] = [None]
    if state.is_main_process:
        try:
            result = [function(*args, **kwargs)]
        except UserError as error:
            result = [error]
    dist.broadcast_object_list(result, src=0, group=_objects())
    if isinstance(result[0], UserError):
        raise result[0]
    return result[0]  # type: ignore[return-value]


def claim_message(message: str) -> bool:
    """Returns whether this process is the first of the launch to print a message; all have the same command line.

    The processes use the store of torchrun or `accelerate launch`. With other launchers every process is the first.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or _count(os.environ, "WORLD_SIZE") < 2:
        return True
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=5)
        )
        # A restart of the same launch prints it again.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        key = f"mllmreid/{attempt}/{hashlib.sha256(message.encode(errors='backslashreplace')).hexdigest()}"
        return store.add(key, 1) == 1
    except (RuntimeError, KeyError, ValueError):
        return True


def wait_for_all() -> None:
    """Waits for all processes, over main memory: accelerate would need a GPU for each of them."""
    if this_process().num_processes > 1:
        dist.barrier(group=_objects())


def gather_on_main(value: Value) -> list[Value]:
    """Returns the values of all processes, in their order, on process 0; an empty list on others. All call it."""
    state = this_process()
    if state.num_processes == 1:
        return [value]
    values: list[Value] | None = [value] * state.num_processes if state.is_main_process else None
    dist.gather_object(value, values, group=_objects())
    return values or []


@cache
def _objects() -> dist.ProcessGroup:
    """Returns the group of all processes over main memory; the default group would copy objects to the GPUs."""
    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=PATIENCE)
    return group
