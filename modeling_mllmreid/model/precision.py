"""Number formats: what pooling, heads and losses are computed in."""

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision as float32; float32 and float64 as they are, so that a `model.double()` stays exact."""
    return values.float() if torch.finfo(values.dtype).bits < 32 else values
