"""Number formats and devices: what pooling, heads and losses are computed in, and where their inputs go."""

import torch
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
