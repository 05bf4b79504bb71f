"""The processes of a launch: this process among them, and the exchange of objects and errors.

A process that no launcher started is alone. It imports torch, which takes seconds, for its device only.
"""

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, TypeVar

from .errors import UserError

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

logger = logging.getLogger(__name__)


Value = TypeVar("Value")
Arguments = ParamSpec("Arguments")

# The number of processes in the environment: torchrun, Open MPI, Intel MPI and Slurm's PMI, MVAPICH2.
WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
# Without any of these variables accelerate starts no group of processes, and there is no lost launch to refuse.
LAUNCHED = frozenset({*WORLD_SIZES, "LOCAL_RANK", "MASTER_ADDR", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"})
# Names of torch for bfloat16 in the instructions of a processor: x86 with and without tiles, ARM.
BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "bf16")
# The other processes wait while process 0 works alone, for example on a re-ranking; NCCL gives up after ten minutes.
PATIENCE = timedelta(days=1)


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Place(NamedTuple):
    """The place of this process in its launch.

    Args:
        rank (`int`): Its number, from 0.
        processes (`int`): Number of processes.
    """

    rank: int
    processes: int


def place() -> Place:
    """Returns the place of this process in its launch. Raises UserError like `refuse_lost_processes`."""
    if not LAUNCHED & os.environ.keys():
        return Place(0, 1)
    state = this_process()
    return Place(state.process_index, state.num_processes)


def this_process() -> "PartialState":
    """Returns the rank and the device of this process; without a launcher it is the only one.

    Without a GPU the CPU backend must be requested, or each of several processes would act as the only one. Raises
    UserError like `refuse_lost_processes`.
    """
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.cuda.is_available())
    refuse_lost_processes(state, os.environ)
    warn_idle_gpus(state)
    return state


def warn_idle_gpus(state: "PartialState") -> None:
    """Warns once if a single process uses one of several GPUs, with the command that uses all of them."""
    import torch

    gpus = torch.cuda.device_count()
    if state.num_processes == 1 and state.device.type == "cuda" and gpus > 1:
        _warn_once(
            f"{gpus} GPUs, and this process uses one of them, {state.device}: to use all, start accelerate launch "
            f"--multi_gpu --num_processes {gpus} run_reid.py ...; CUDA_VISIBLE_DEVICES chooses one"
        )


def has_bfloat16() -> bool:
    """Returns whether the CPU has instructions for bfloat16, without which it is slower in it than in float32."""
    import torch

    return any(torch.cpu.get_capabilities().get(name) for name in BFLOAT16_INSTRUCTIONS)


def warn_slow_bfloat16(device: "torch.device", setting: str) -> None:
    """Warns once of bfloat16 on a CPU that has no instructions for it.

    Args:
        device (`torch.device`): Device of the computation; no other than the CPU is warned about.
        setting (`str`): What to set, as it ends the warning.
    """
    if device.type == "cpu" and not has_bfloat16():
        _warn_once(f"this processor has no instructions for bfloat16 and is faster in float32: set {setting}")


@cache
def _warn_once(text: str) -> None:
    logger.warning(text)


def refuse_lost_processes(state: "PartialState", environ: Mapping[str, str]) -> None:
    """Raises UserError if a launch for several processes, or for FSDP, did not become one.

    Each of several such processes would act as the only one, train on all data and overwrite the others' files.
    environ: the environment that the launcher left. `accelerate launch` with `--cpu`, or without `--multi_gpu` and
    without a configuration for several processes, starts one process whatever `--num_processes` is, and leaves only
    MASTER_ADDR.
    """
    remedy = (
        "start them with accelerate launch --multi_gpu --num_processes {0} run_reid.py ..., without GPUs with torchrun "
        "--nproc_per_node {0} run_reid.py ... (train: --use_cpu true)"
    )
    variable, count = _launched(environ)
    if state.num_processes == 1 and count > 1:
        raise UserError(f"{variable} is {count}, but this process is alone: {remedy.format(count)}")
    # Only accelerate's launcher of a single process leaves the first of the two.
    if state.num_processes == 1 and count == 0 and {"ACCELERATE_USE_CPU", "MASTER_ADDR"} <= environ.keys():
        raise UserError(
            "accelerate launch was asked for several processes and started one: "
            f"{remedy.format('N')}; to run one process, unset MASTER_ADDR"
        )
    from accelerate import DistributedType

    if environ.get("ACCELERATE_USE_FSDP") == "true" and state.distributed_type == DistributedType.MULTI_CPU:
        raise UserError(
            "FSDP needs GPUs, and accelerate replaces it with DDP on CPUs: leave the FSDP configuration out"
        )


def refuse_several_processes(command: str, environ: Mapping[str, str]) -> None:
    """Raises UserError if several processes were launched: each would do all of the command, in the same files.

    Args:
        command (`str`): A command that does not share its work, as it begins the error.
        environ (`Mapping`): The environment that the launcher left.
    """
    variable, count = _launched(environ)
    if count > 1:
        raise UserError(f"{command} runs in one process, and {variable} is {count}: start it without the launcher")


def _launched(environ: Mapping[str, str]) -> tuple[str, int]:
    """Returns the variable of a launcher with the most processes, and their number; 0 if there is none."""
    variable = max(WORLD_SIZES, key=lambda name: _count(environ, name))
    return variable, _count(environ, variable)


def _count(environ: Mapping[str, str], name: str) -> int:
    """Returns a number of processes from the environment; 0 if there is none."""
    value = environ.get(name, "")
    return int(value) if value.isdecimal() else 0


def raise_together(value: Value | UserError) -> Value:
    """Returns the value if every process has one; otherwise raises the UserError of the lowest rank on all of them.

    All processes call it at the same place: if one process ended alone, the others would wait for it.
    """
    if (processes := place().processes) > 1:
        import torch.distributed as dist

        errors: list[UserError | None] = [None] * processes
        dist.all_gather_object(errors, value if isinstance(value, UserError) else None, group=_cpu_group())
        value = next((error for error in errors if error is not None), value)
    if isinstance(value, UserError):
        raise value
    return value


def on_main(function: Callable[Arguments, Value], *args: Arguments.args, **kwargs: Arguments.kwargs) -> Value:
    """Calls the function on process 0 and returns its result on every process; all processes call `on_main`.

    A UserError of the function is raised on every process.
    """
    if place().processes == 1:
        return function(*args, **kwargs)
    import torch.distributed as dist

    result: list[Value | UserError | None] = [None]
    if place().rank == 0:
        try:
            result = [function(*args, **kwargs)]
        except UserError as error:
            result = [error]
    dist.broadcast_object_list(result, src=0, group=_cpu_group())
    if isinstance(result[0], UserError):
        raise result[0]
    return result[0]  # type: ignore[return-value]


def claim_message(message: str) -> bool:
    """Returns whether this process is the first of its launch to report a message: all of them share one command line.

    The processes count in the store of torchrun or `accelerate launch`, which exists before they are connected. With
    other launchers every process is the first.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or _count(os.environ, "WORLD_SIZE") < 2:
        return True
    import torch.distributed as dist

    try:
        store = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=5)
        )
        # A restart of the same launch reports the message again.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        key = f"mllmreid/{attempt}/{hashlib.sha256(message.encode(errors='backslashreplace')).hexdigest()}"
        return store.add(key, 1) == 1
    except (RuntimeError, KeyError, ValueError):
        return True


def wait_for_all() -> None:
    """Waits for all processes, over main memory: accelerate would need a GPU for each process even on the CPU."""
    if place().processes > 1:
        import torch.distributed as dist

        dist.barrier(group=_cpu_group())


def gather_on_main(value: Value) -> list[Value]:
    """Returns the values of all processes in order on process 0, an empty list on the others. All processes call it."""
    rank, processes = place()
    if processes == 1:
        return [value]
    import torch.distributed as dist

    values: list[Value] | None = [value] * processes if rank == 0 else None
    dist.gather_object(value, values, group=_cpu_group())
    return values or []


@cache
def _cpu_group() -> "dist.ProcessGroup":
    """Returns a group of all processes over main memory; the default group of GPUs would copy objects to them."""
    import torch.distributed as dist

    group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=PATIENCE)
    return group
