"""Number formats: what pooling, heads and losses are computed in."""

import torch
from torch import Tensor, nn


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are, so that a `model.double()` stays exact."""
    return values.float() if torch.finfo(values.dtype).bits < 32 else values


def in_format_of(module: nn.Module, values: Tensor) -> Tensor:
    """The values as the module's weights are held, where a frozen part in half precision meets a trained one.

    Under autocast as they are: it brings both to its own format.
    """
    if not values.is_meta and torch.is_autocast_enabled(values.device.type):
        return values
    formats = (parameter.dtype for parameter in module.parameters() if parameter.is_floating_point())
    return values.to(next(formats, values.dtype))
