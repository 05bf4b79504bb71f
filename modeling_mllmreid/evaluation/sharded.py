"""Batches shared over the processes of a run: each is embedded by one process, and process 0 gets all rows in order."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from ..processes import gather_on_main, this_process

Batch = TypeVar("Batch")


def share_of_batches(count: int, batch_size: int) -> list[list[int]]:
    """The rows of each of this process's batches, of `count` rows in all (1 or more): every W-th batch of W processes.

    They are the batches that one process alone makes, so that the features do not depend on the number of processes.
    Each process has as many, as the forward passes of sharded parameters wait for one another: where the last round
    lacks batches, row 0 fills up, alone in its batch.
    """
    state = this_process()
    batches = [list(range(start, min(start + batch_size, count))) for start in range(0, count, batch_size)]
    batches += [[0]] * (-len(batches) % state.num_processes)
    return batches[state.process_index :: state.num_processes]


def rows_on_main(
    embed: Callable[[Batch], Mapping[str, Tensor]], batches: Iterable[Batch], count: int, *, unit: str, progress: bool
) -> dict[str, np.ndarray]:
    """The named rows of all processes' batches on process 0, each (count, D), in order; none, (0, D), on the others.

    embed: a batch's named rows, each (B, D). batches: this process's, from `share_of_batches`. Each round's rows go to
    process 0 at once. progress: whether process 0 shows a bar, of `unit`s.
    """
    main = this_process().is_main_process
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    with tqdm(total=count, desc="embedding", unit=unit, disable=not (progress and main)) as bar:
        for batch in batches:
            rows = {name: values.cpu().numpy() for name, values in embed(batch).items()}
            for of_process in gather_on_main(rows) or [{name: values[:0].copy() for name, values in rows.items()}]:
                for name, values in of_process.items():
                    parts[name].append(values)
                bar.update(min(len(values), count - bar.n))
    # What fills up the last round is behind all rows.
    return {name: np.concatenate(part)[:count] for name, part in parts.items()}
