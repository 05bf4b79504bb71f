"""Child processes that start at once: forked from a server that imported the package, because an import takes seconds.

The server and its children see no GPU: CUDA cannot be used in a child of a process that has used it.
"""

import gc
import multiprocessing
from collections.abc import Callable
from multiprocessing import forkserver
from typing import Any

import pytest
import torch.multiprocessing

from modeling_mllmreid.commands import embed, evaluate
from modeling_mllmreid.research import tiny_llava
from modeling_mllmreid.training import checkpointing, run

# The modules themselves: the server passes over a name that it cannot import, and each child would import again.
IMPORTED = [module.__name__ for module in (run, checkpointing, tiny_llava, evaluate, embed)]


def start_server() -> None:
    """Starts the server unless it runs."""
    forkserver.set_forkserver_preload(IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        forkserver.ensure_running()


def run_child(*given: Any) -> None:
    """Calls a function in a child, with a rank before the function or without; what is imported is no garbage."""
    gc.freeze()
    *rank, function, args = given
    function(*rank, *args)


def exit_code_of_child(function: Callable, *args: Any) -> int:
    """Runs a function of a module in a child; returns its exit code, below 0 for a signal."""
    start_server()
    child = multiprocessing.get_context("forkserver").Process(target=run_child, args=(function, args))
    child.start()
    child.join()
    return child.exitcode


def start_children(function: Callable, *args: Any, count: int) -> torch.multiprocessing.ProcessContext:
    """Starts children that run function(rank, *args); `.join()` waits, and raises an exception of any."""
    start_server()
    return torch.multiprocessing.start_processes(
        run_child, (function, args), count, join=False, start_method="forkserver"
    )
