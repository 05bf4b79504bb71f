"""Work spread over new Python processes, which import nothing of the script that starts them."""

import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Sequence
from typing import Any

from ..utils.errors import UserError

# A process starts in 0.3 s, about the time of two people, and takes 100 MB.
PEOPLE_PER_PROCESS = 20
MOST_USEFUL = 16
# A worker finds modules where this process does, whatever the current folder is.
START = "import sys; sys.path[:] = sys.argv[1:]; from modeling_mllmreid.synthetic.workers import work; work()"
# Every core has its worker, so a worker needs no further threads.
ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}


def useful_processes(people: int) -> int:
    """Returns how many processes render a number of people fastest on the cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    # torchrun starts several processes, and each of them reads the data set.
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(cores, people // PEOPLE_PER_PROCESS, MOST_USEFUL))


def map_in_processes(
    function: Callable[[Any], Any], items: Sequence[Any], processes: int
) -> Generator[Any, None, None]:
    """Yields the function's result for each item, in the order of the items. To close the iterator ends the processes.

    Args:
        function (`Callable`): With several processes, one that pickle can send.
        items (`Sequence`): Arguments of the function.
        processes (`int`): Number of processes. With one, the work is done in this process.

    Raises:
        UserError: A process was killed. An exception of the function is raised as it is.
    """
    processes = min(processes, len(items))
    if processes <= 1:
        yield from map(function, items)
        return
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(processes):
            workers.append(_start())
            _send(workers[-1], (function, items[number::processes]))
        for number in range(len(items)):
            result, error = _receive(workers[number % processes])
            if error is not None:
                raise error
            yield result
    finally:
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.communicate()  # waits for its end, and closes its pipes


def _start() -> "subprocess.Popen[bytes]":
    """Starts a worker, in a session of its own: Ctrl-C reaches the parent process alone, which ends its workers."""
    command, pipe = [sys.executable, "-c", START, *sys.path], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=os.environ | ONE_THREAD, start_new_session=True)


def _send(worker: "subprocess.Popen[bytes]", job: tuple[Callable[[Any], Any], Sequence[Any]]) -> None:
    """Sends a worker its function and its items."""
    try:
        worker.stdin.write(pickle.dumps(job))  # type: ignore[union-attr]
        worker.stdin.flush()  # type: ignore[union-attr]
    except BrokenPipeError:
        raise _death(worker) from None


def _receive(worker: "subprocess.Popen[bytes]") -> tuple[Any, Exception | None]:
    """Returns the next result of a worker, or the exception in its place."""
    try:
        answer: tuple[Any, Exception | None] = pickle.load(worker.stdout)  # type: ignore[arg-type]
    except (EOFError, pickle.UnpicklingError):
        raise _death(worker) from None
    return answer


def _death(worker: "subprocess.Popen[bytes]") -> UserError:
    """Returns the error that says how a worker ended."""
    code = worker.wait()
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return UserError(
        f"a process that renders people {how}: start again; if the memory was full, which makes the system kill "
        "processes, free some first"
    )


def work() -> None:
    """Does the work of a worker: reads the function and the items from stdin, writes each result to stdout."""
    # What a library prints goes to stderr.
    results, sys.stdout = sys.stdout.buffer, sys.stderr
    try:
        function, items = pickle.load(sys.stdin.buffer)
        for item in items:
            results.write(pickle.dumps(_answer(function, item)))
            results.flush()
    except (EOFError, pickle.UnpicklingError, BrokenPipeError):
        # The parent process has ended.
        os._exit(1)


def _answer(function: Callable[[Any], Any], item: Any) -> tuple[Any, Exception | None]:
    """Returns the result of a function, or its exception with the traceback."""
    try:
        return function(item), None
    except Exception as error:
        error.add_note(traceback.format_exc())
        return None, error
