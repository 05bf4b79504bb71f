"""Tensors among NumPy arrays, for code that does not need torch itself."""

import sys
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from torch import Tensor


def is_tensor(value: object) -> "TypeGuard[Tensor]":
    """Returns whether a value is a tensor; without torch imported it is none, and torch takes seconds to import."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)
