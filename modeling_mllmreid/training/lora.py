"""The LoRA of a training step: one function with a gradient by hand, instead of PEFT's single operations."""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled

from ..model.adapters import ADAPTER_NAME


class LoraSum(torch.autograd.Function):
    """Adds a LoRA's product to the output of its layer: result + scale * (x A^T) B^T.

    PEFT casts the input to float32, and autocast casts it back; then it multiplies and adds in operations of their own.
    Here all products are in the format of the result, and the sum is part of the last one. The float32 weights A and B
    get float32 gradients.
    """

    @staticmethod
    def forward(ctx: Any, result: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """Computes the sum.

        Args:
            ctx: what backward needs.
            result (`Tensor`): (n, out) output of the layer.
            x (`Tensor`): (n, in) its input, in the format of the result.
            a (`Tensor`): (r, in) first matrix.
            b (`Tensor`): (out, r) second matrix.
            scale (`float`): factor of the product.

        Returns:
            `Tensor`: (n, out).
        """
        with torch.autocast(x.device.type, enabled=False):
            ctx.scale, ctx.dtypes = scale, (a.dtype, b.dtype)
            # Cast once for both passes.
            a, b = a.to(x.dtype), b.to(x.dtype)
            hidden = x @ a.T
            ctx.save_for_backward(x, hidden, a, b)
            return torch.addmm(result, hidden, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Computes the gradients of result, x, A and B from that of the sum, (n, out)."""
        (gradient,) = gradients
        x, hidden, a, b = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            of_hidden = ctx.scale * (gradient @ b)
            of_x = of_hidden @ a if ctx.needs_input_grad[1] else None
            of_a = (of_hidden.T @ x).to(ctx.dtypes[0]) if ctx.needs_input_grad[2] else None
            of_b = (ctx.scale * (gradient.T @ hidden)).to(ctx.dtypes[1]) if ctx.needs_input_grad[3] else None
        return gradient, of_x, of_a, of_b, None


def fuse_lora(model: nn.Module) -> int:
    """Makes the LoRA layers of a model compute by [`LoraSum`]. Their weights, names and files stay PEFT's.

    A layer computes as PEFT does where that is more than a LoRA's sum: merged or disabled adapters, other formats of
    input and weights outside autocast, and arguments other than the input. With ZeRO-3, no layer is changed: it gathers
    weights in the forward passes of their own modules, and the function does not call those.

    Args:
        model (`nn.Module`): the model, changed in place.

    Returns:
        `int`: number of layers that were changed.
    """
    if is_deepspeed_zero3_enabled():
        return 0
    try:
        from peft.tuners.lora import LoraLayer
    except ImportError:  # without PEFT there is no LoRA
        return 0
    layers = [module for module in model.modules() if isinstance(module, LoraLayer) and _is_plain(module)]
    for layer in layers:
        layer.forward = MethodType(_forward, layer)
    return len(layers)


def _is_plain(layer: Any) -> bool:
    """Returns whether a layer of PEFT has one LoRA of two matrices, around a linear layer."""
    matrices = (layer.lora_A, layer.lora_B)
    return (
        [list(side) for side in matrices] == [[ADAPTER_NAME]] * 2
        and all(type(side[ADAPTER_NAME]) is nn.Linear and side[ADAPTER_NAME].bias is None for side in matrices)
        and not layer.lora_variant
    )


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The forward pass of a LoRA layer."""
    plainly = args or kwargs or layer.disable_adapters or layer.merged or layer.active_adapters != [ADAPTER_NAME]
    a, b = (side[ADAPTER_NAME].weight for side in (layer.lora_A, layer.lora_B))
    if plainly or not (torch.is_autocast_enabled(x.device.type) or x.dtype == a.dtype):
        plain: Tensor = type(layer).forward(layer, x, *args, **kwargs)
        return plain
    result = layer.base_layer(x)
    x = layer.lora_dropout[ADAPTER_NAME](x.to(result.dtype))
    flat = LoraSum.apply(
        result.reshape(-1, result.shape[-1]), x.reshape(-1, x.shape[-1]), a, b, layer.scaling[ADAPTER_NAME]
    )
    summed: Tensor = flat.view(result.shape)
    return summed
