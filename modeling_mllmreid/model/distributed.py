"""Gathering over processes with the exact gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gather_with_gradient(rows: Tensor) -> Tensor:
    """The rows of all processes, (W * B, ...), in rank order; one process gets its own back.

    A ReID loss that is the mean over all gathered rows has the exact gradient after DDP's averaging, for encoder and
    head alike, with no factor W: every rank computes the whole loss, and the gather's backward sums over ranks.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return rows
    return _Gather.apply(rows)


class _Gather(torch.autograd.Function):
    """All processes' rows; their gradient is the sum of what every process has for them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
