"""Work spread over new Python processes, which import nothing of the script that starts them."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import Any

from ..utils.errors import UserError
from ..utils.processes import usable_cores

# A process starts in 0.3 s, about the time of two people, and takes 100 MB.
PEOPLE_PER_PROCESS = 20
MOST_USEFUL = 16
# A worker finds modules where this process does, whatever the current folder is.
START = """import sys; sys.path[:] = sys.argv[1:]
from modeling_mllmreid.synthetic.workers import work
from {module} import {name}
work({name})"""
# Every core has its worker, so a worker needs no further threads.
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}


def useful_processes(people: int) -> int:
    """Returns how many processes render a number of people fastest on the cores that this process may use."""
    # torchrun starts several processes, and each of them reads the data set.
    cores = usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(cores, people // PEOPLE_PER_PROCESS, MOST_USEFUL))


def map_in_processes(
    function: Callable[[Any], Any], items: Sequence[Any], processes: int
) -> Generator[Any, None, None]:
    """Yields the function's result for each item, in the order of the items. To close the iterator ends the processes.

    Args:
        function (`Callable`): With several processes, a function of a module, whose result JSON can write.
        items (`Sequence`): Arguments of the function. With several processes, JSON must be able to write them.
        processes (`int`): Number of processes. With one, the work is done in this process.

    Raises:
        UserError: A process was killed.
        OSError: As the function raised it in another process.
        RuntimeError: The function raised another exception in another process; it has the traceback as a note.
    """
    processes = min(processes, len(items))
    if processes <= 1:
        yield from map(function, items)
        return
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(processes):
            workers.append(_start(function))
            _send(workers[-1], items[number::processes])
        for number in range(len(items)):
            yield _receive(workers[number % processes])
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.communicate()  # waits for its end, and closes its pipes


def _start(function: Callable[[Any], Any]) -> "subprocess.Popen[bytes]":
    """Starts a worker, in a session of its own: Ctrl-C reaches the parent process alone, which ends its workers."""
    program = START.format(module=function.__module__, name=function.__name__)
    command, pipe = [sys.executable, "-c", program, *sys.path], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | ONE_THREAD, start_new_session=True)


def _send(worker: "subprocess.Popen[bytes]", items: Sequence[Any]) -> None:
    """Sends a worker its items."""
    try:
        worker.stdin.write(json.dumps(list(items)).encode() + b"\n")  # type: ignore[union-attr]
        worker.stdin.flush()  # type: ignore[union-attr]
    except BrokenPipeError:
        raise _death(worker) from None


def _receive(worker: "subprocess.Popen[bytes]") -> Any:
    """Returns the next result of a worker; raises the exception in its place."""
    line = worker.stdout.readline()  # type: ignore[union-attr]
    if not line.endswith(b"\n"):
        raise _death(worker)
    answer = json.loads(line)
    if "traceback" not in answer:
        return answer["result"]
    error = OSError(*answer["system"]) if answer["system"] else RuntimeError(answer["message"])
    error.add_note(answer["traceback"])
    raise error


def _death(worker: "subprocess.Popen[bytes]") -> UserError:
    """Returns the error that says how a worker ended."""
    code = worker.wait()
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return UserError(
        f"a process that renders people {how}: start again; if the memory was full, which makes the system kill "
        "processes, free some first"
    )


def work(function: Callable[[Any], Any]) -> None:
    """Does the work of a worker: reads the items from stdin, writes each result to stdout."""
    # What a library prints goes to stderr.
    results, sys.stdout = sys.stdout.buffer, sys.stderr
    line = sys.stdin.buffer.readline()
    if not line.endswith(b"\n"):
        # The parent process has ended.
        os._exit(1)
    try:
        for item in json.loads(line):
            results.write(json.dumps(_answer(function, item)).encode() + b"\n")
            results.flush()
    except BrokenPipeError:
        os._exit(1)


def _answer(function: Callable[[Any], Any], item: Any) -> dict[str, Any]:
    """Returns the result of a function, or what its exception says."""
    try:
        return {"result": function(item)}
    except Exception as error:
        system = [error.errno, error.strerror, error.filename] if isinstance(error, OSError) else None
        message = f"{type(error).__name__}: {error}"
        return {"system": system, "message": message, "traceback": traceback.format_exc()}
