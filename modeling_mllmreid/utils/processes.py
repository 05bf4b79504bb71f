"""The processes that a launcher started, of which this is one, and what they tell each other besides gradients."""

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

# What a launcher tells each of its processes: torchrun, Open MPI, Intel MPI and Slurm's PMI, MVAPICH2.
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
# The others wait while process 0 works alone, on pictures or a re-ranking: a GPU's own group gives up in ten minutes.
PATIENCE = timedelta(days=1)


def this_process() -> PartialState:
    """This process's place among all, with the device that is its own; alone where nothing was launched.

    Without a GPU the backend must be asked for: several processes would each take themselves for the only one. Raises
    UserError as `refuse_lost_processes`.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    refuse_lost_processes(state, os.environ)
    warn_idle_gpus(state)
    return state


def warn_idle_gpus(state: PartialState) -> None:
    """Says once that a process that was not launched with others uses one of several GPUs, and how to use all."""
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


def raise_together(value: Value | UserError) -> Value:
    """The value, where every process has one; else the lowest process's UserError is raised on every one of them.

    All processes call it at the same place: one that ended alone would leave the others waiting for it.
    """
    if this_process().num_processes > 1:
        errors: list[UserError | None] = [None] * this_process().num_processes
        dist.all_gather_object(errors, value if isinstance(value, UserError) else None, group=_objects())
        value = next((error for error in errors if error is not None), value)
    if isinstance(value, UserError):
        raise value
    return value


def on_main(function: Callable[Given, Value], *args: Given.args, **kwargs: Given.kwargs) -> Value:
    """What the function returns on process 0, which alone calls it, on every process; all of them call `on_main`.

    A UserError that it raises is raised on every process.
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
    """Whether no other process of this launch has said this: all of them make the mistakes of one command line.

    Several count in the store of torchrun or `accelerate launch`, which is there before they know each other. Of other
    launchers every process is the first.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or _count(os.environ, "WORLD_SIZE") < 2:
        return True
    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=5)
        )
        # A restart of the same launch says it again.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        key = f"mllmreid/{attempt}/{hashlib.sha256(message.encode(errors='backslashreplace')).hexdigest()}"
        return store.add(key, 1) == 1
    except (RuntimeError, KeyError, ValueError):
        return True


def wait_for_all() -> None:
    """Waits until every process is here, over main memory: accelerate would ask for a GPU of each on the CPU, too."""
    if this_process().num_processes > 1:
        dist.barrier(group=_objects())


def gather_on_main(value: Value) -> list[Value]:
    """The values of all processes, in their order, on process 0; an empty list on the others. All of them call it."""
    state = this_process()
    if state.num_processes == 1:
        return [value]
    values: list[Value] | None = [value] * state.num_processes if state.is_main_process else None
    dist.gather_object(value, values, group=_objects())
    return values or []


@cache
def _objects() -> dist.ProcessGroup:
    """All processes, over main memory, where these objects are; the default group of GPUs would copy them there."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)
