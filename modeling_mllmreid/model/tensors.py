"""Tensor helpers: number formats, devices, and the gathering over processes with the exact gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are, so that a `model.double()` stays exact."""
    return values.float() if torch.finfo(values.dtype).bits < 32 else values


def on_device_of(module: nn.Module, values: Tensor) -> Tensor:
    """The values on the device of the module that takes them; as they are where its weights are offloaded."""
    weight = next(module.parameters(), values)
    return values if weight.is_meta else values.to(weight.device)


def in_format_of(module: nn.Module, values: Tensor) -> Tensor:
    """The values on the module's device, and as its weights are held, where frozen half precision meets a trained part.

    Under autocast in their own format: it brings both to its own.
    """
    values = on_device_of(module, values)
    if not values.is_meta and torch.is_autocast_enabled(values.device.type):
        return values
    formats = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return values.to(next(formats, values.dtype))


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
