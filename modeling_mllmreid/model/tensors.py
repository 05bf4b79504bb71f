"""Tensor helpers: number formats, devices, and gathering over processes with the exact gradient."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def at_least_float32(values: Tensor) -> Tensor:
    """Returns half precision as float32, and float32 and float64 unchanged, so that `model.double()` stays exact."""
    return values.float() if torch.finfo(values.dtype).bits < 32 else values


def on_device_of(module: nn.Module, values: Tensor) -> Tensor:
    """Returns the values on the module's device, or unchanged if the module's weights are offloaded."""
    weight = next(module.parameters(), values)
    return values if weight.is_meta else values.to(weight.device)


def in_format_of(module: nn.Module, values: Tensor) -> Tensor:
    """Returns the values on the module's device and in its number format.

    A trained module in float32 may follow a frozen one in half precision. Under autocast the number format stays:
    autocast converts both.
    """
    values = on_device_of(module, values)
    if not values.is_meta and torch.is_autocast_enabled(values.device.type):
        return values
    formats = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return values.to(next(formats, values.dtype))


def gather_with_gradient(values: Tensor) -> Tensor:
    """Gathers a batch over all processes, with gradient.

    A ReID loss that is the mean over the gathered batch has the exact gradient after DDP averages it, for encoder and
    heads, without a factor W: every process computes the whole loss, and the backward pass sums over processes.

    Args:
        values (`torch.Tensor` of shape `(B, ...)`):
            This process's batch, of the same size in every process.

    Returns:
        `torch.Tensor` of shape `(W * B, ...)`: in the order of the ranks; `values` itself in a single process.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return values
    gathered: Tensor = _Gather.apply(values)
    return gathered


class _Gather(torch.autograd.Function):
    """Concatenates the batches of all processes; the gradient is the sum over the processes' gradients."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        values = values.contiguous()
        batches = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        dist.all_gather(batches, values)
        return torch.cat(batches)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]
