"""Ranks of the matches, on the device of the distances."""

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .points import on_cpu
from .ranking import Part

# Up to this number of matches of a query, a GPU compares the whole block with each of them; beyond, it sorts the block.
COMPARED = 128


class MatchRanks(NamedTuple):
    """The ranks of the matches of n queries.

    Args:
        ranks (`np.ndarray`): (T,) int64 ranks from 1, query after query, ascending in each.
        counts (`np.ndarray`): (n,) int64 number of matches of each query.
    """

    ranks: np.ndarray
    counts: np.ndarray

    def by_query(self) -> list[np.ndarray]:
        """Returns the ranks of each query."""
        ends = np.cumsum(self.counts)
        return [self.ranks[start:end] for start, end in zip((ends - self.counts).tolist(), ends.tolist(), strict=True)]


def match_ranks(part: Part) -> MatchRanks:
    """Computes the ranks of the matches of each query of a part, among the images that the matching rule keeps.

    A match's rank is 1 + the non-matches that are at most as far + the matches before it.

    Args:
        part (`Part`): the distances and the images of the queries' persons.

    Returns:
        `MatchRanks`: the ranks, on the CPU.
    """
    block, counts = part.distances, part.kept.sum(1, keepdim=True)
    if not part.images.shape[1]:
        return MatchRanks(np.empty(0, np.int64), np.zeros(len(block), np.int64))
    distances = block.gather(1, part.images)
    matches = distances.masked_fill(~part.kept, torch.inf).sort(1).values
    person = distances.masked_fill(~part.there, torch.inf).sort(1).values
    near = _near_in_threads(block, matches, counts) if on_cpu(block) else _near_on_device(block, matches)
    # All images that are at most as far, minus the images of the query's person, kept or dropped.
    own = torch.searchsorted(person, matches, right=True).minimum(part.there.sum(1, keepdim=True))
    columns = torch.arange(matches.shape[1], device=block.device)
    ranks = (1 + near - own + columns)[columns < counts]
    return MatchRanks(ranks.cpu().numpy(), counts[:, 0].cpu().numpy())


def _near_on_device(block: Tensor, matches: Tensor) -> Tensor:
    """Counts the distances of each row (n, G) that are at most as large as each of its matches, (n, M) ascending."""
    if matches.shape[1] > COMPARED:
        return torch.searchsorted(block.sort(1).values, matches, right=True)
    return torch.stack([(block <= column[:, None]).sum(1) for column in matches.unbind(1)], 1)


def _near_in_threads(block: Tensor, matches: Tensor, counts: Tensor) -> Tensor:
    """Counts as `_near_on_device` for the first `counts` (n, 1) matches of a row, in as many threads as torch has.

    NumPy releases the interpreter's lock in each of its steps.
    """
    rows, limits, numbers = block.numpy(), matches.numpy(), counts[:, 0].tolist()
    near = np.zeros(limits.shape, np.int64)

    def count(start: int, stop: int) -> None:
        for row, limit, number, found in zip(
            rows[start:stop], limits[start:stop], numbers[start:stop], near[start:stop], strict=True
        ):
            if number:
                # Only the distances up to the farthest match are sorted. A gather by index: one by flags is slower.
                nearest = np.sort(row[np.flatnonzero(row <= limit[number - 1])])
                found[:number] = nearest.searchsorted(limit[:number], side="right")

    threads = torch.get_num_threads()
    if threads == 1:
        count(0, len(rows))
        return torch.from_numpy(near)
    bounds = np.linspace(0, len(rows), threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(count, *ends) for ends in zip(bounds[:-1], bounds[1:], strict=True)]:
            future.result()
    return torch.from_numpy(near)
