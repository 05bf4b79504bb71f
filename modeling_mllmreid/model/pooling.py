"""Pooling of an encoder's final states: class token, mean of patches, GeM, or class token and mean."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .heads import mean_pool
from .tensors import at_least_float32

PoolingName = Literal["class", "mean", "gem", "class_mean"]
WITH_CLASS_TOKEN = ("class", "class_mean")


def gem_pool(patches: Tensor, p: Tensor, eps: float = 1e-6) -> Tensor:
    """Computes generalised-mean pooling, `mean(max(x, eps) ** p) ** (1 / p)`.

    With p = 1 it is the mean of the positive parts; the larger p, the nearer it is to the maximum.

    Args:
        patches (`torch.Tensor` of shape `(B, N, D)`):
            States of the patches.
        p (`torch.Tensor` of shape `(1,)`):
            The exponent.
        eps (`float`, *optional*, defaults to 1e-6):
            Lower bound of the states, below which a power has no gradient.

    Returns:
        `torch.Tensor` of shape `(B, D)`

    Source: Radenović et al. 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation", equation 3.
    """
    # By logarithms: powers of large states would overflow.
    logarithms = at_least_float32(patches).clamp(min=eps).log()
    return (((p * logarithms).logsumexp(dim=1) - math.log(patches.shape[1])) / p).exp()


def no_class_token(config: Any) -> ValueError:
    """Returns the error for a pooling of the class token of an encoder that has none. config: of the vision form."""
    kind = config.vision_config.model_type
    return ValueError(f"pooling is {config.pooling!r}, and {kind!r} has no class token: give 'mean' or 'gem'")


class Pooling(nn.Module):
    """Pools the states of an encoder to one feature.

    Args:
        name (`"class"`, `"mean"`, `"gem"` or `"class_mean"`):
            The class token, the mean of the patches, GeM over the patches, or the class token followed by the mean.
            GeM has one trained weight, its exponent p, which starts at 3.

    Source: Radenović et al. 2018 (GeM, with p = 3 at the start).
    """

    start = 3.0

    def __init__(self, name: PoolingName):
        super().__init__()
        self.name = name
        self.format = torch.promote_types(torch.get_default_dtype(), torch.float32)
        self.p = nn.Parameter(torch.full((1,), self.start, dtype=self.format)) if name == "gem" else None

    def feature_size(self, size: int) -> int:
        """Returns the size of the feature of states of a size."""
        return 2 * size if self.name == "class_mean" else size

    def reset_parameters(self) -> None:
        """Sets GeM's exponent to its start; loading a checkpoint calls it if the checkpoint has none."""
        if self.p is not None:
            init.constant_(self.p, self.start)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Pooling":
        """Applies `.to()`, `.half()` and the like, but keeps the exponent in float32 or float64."""

        def convert(values: Tensor) -> Tensor:
            changed = fn(values)
            dtype = torch.promote_types(changed.dtype, torch.float32)
            # From the old values: half precision has lost their digits.
            return changed if changed.dtype == dtype else values.to(changed.device, dtype)

        super()._apply(convert, recurse)
        return self

    def forward(self, states: Tensor, dropped: int) -> Tensor:
        """Pools states.

        Args:
            states (`torch.Tensor` of shape `(B, S, D)`):
                Final states: class token and registers, then the patches.
            dropped (`int`):
                Number of states before the patches, which mean and GeM leave out.

        Returns:
            `torch.Tensor` of shape `(B, D)`, or `(B, 2 D)` for "class_mean": float32 or float64.
        """
        patches = states[:, dropped:]
        # Autocast would compute powers and means in half precision.
        with torch.autocast(states.device.type, enabled=False):
            if self.p is not None:
                return gem_pool(patches, self.p)
            if self.name == "mean":
                return mean_pool(patches)
            class_token = at_least_float32(states[:, 0])
            return class_token if self.name == "class" else torch.cat([class_token, mean_pool(patches)], dim=-1)
