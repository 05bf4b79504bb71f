"""All runs of a plan: those that are there are kept, the others are run, several at once."""

import multiprocessing
import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm.auto import tqdm

from ...errors import UserError
from .plan import Run
from .run import RESULT, Place, execute


def folder_of(run: Run, runs: Path) -> Path:
    """A run's folder: the one that is there under its key, whatever it was called then, else a new one's."""
    found = [path for path in runs.glob(f"*-{run.key}") if (path / RESULT).is_file()] if runs.is_dir() else []
    return found[0] if found else runs / run.folder


def run_all(tasks: Sequence[tuple[Run, Place]], runs: Path, *, processes: int) -> None:
    """Runs what has no result yet, each in one of `processes` processes.

    A kill loses the runs that were going on and no other. Raises UserError naming the first run that failed; those
    that were going on beside it are finished first.
    """
    waiting = {run.key: (run, place) for run, place in tasks if not (folder_of(run, runs) / RESULT).is_file()}
    for left in runs.glob(".*.part"):
        # Of a sweep that was killed; its runs are done anew.
        shutil.rmtree(left)
    print(f"{len({run.key for run, _ in tasks})} runs, {len(waiting)} of them to do, {processes} at once", flush=True)
    if not waiting:
        return
    # A new process each: torch's threads and the Trainer's state do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_the_sweep) as pool:
        going = {pool.submit(execute, run, place, folder_of(run, runs)): run for run, place in waiting.values()}
        with tqdm(total=len(going), desc="runs", unit="run") as bar:
            for future in as_completed(going):
                run = going[future]
                try:
                    future.result()
                except BrokenProcessPool as error:
                    raise UserError(
                        f"run {run.folder}: its process was killed ({error}), by a lack of memory perhaps: set "
                        "processes lower; the same command goes on with what is left"
                    ) from error
                except Exception as error:
                    pool.shutdown(cancel_futures=True)
                    raise UserError(
                        f"run {run.folder}: {' '.join(str(error).split())[:300]} (its log: {runs / run.folder}.log): "
                        "the same command goes on with what is left"
                    ) from error
                bar.update()


def _end_with_the_sweep() -> None:
    """Ends this process when the sweep's ends, however that was: a run that goes on alone would meet its own repeat."""

    def watch() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
