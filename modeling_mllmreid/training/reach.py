"""Reach: which parameters of the vision tower and the projector a loss reaches, found by a run on fake tensors."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..model import MllmReIDConfig, MllmReIDModel


def make_fake(model: nn.Module) -> None:
    """Replaces weights and buffers by fake tensors on the CPU, which have a shape and a dtype but no memory.

    Call it within a `FakeTensorMode`.

    Args:
        model (`nn.Module`): The model, usually on the meta device, changed in place.
    """
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def image_parameters(config: MllmReIDConfig, *, image: bool, vision: bool) -> set[str]:
    """Returns the names of the parameters that compute the image embeddings, the vision feature or both.

    Names would not be enough: which norms and pooling heads lie on the way depends on the encoder.

    Args:
        config (`MllmReIDConfig`): Configuration of the model.
        image (`bool`): Whether a loss reads the embeddings of the image tokens.
        vision (`bool`): Whether a loss reads the vision feature.

    Returns:
        `set[str]`: Names within [`MllmReIDModel`], without a LoRA.
    """
    with torch.device("meta"):
        model = MllmReIDModel(config)

    def outputs() -> Iterable[Tensor]:
        size: Any = (1, 3, config.height, config.width)
        output = model.run_tower(torch.empty(size))
        if image:
            projected = model.project_image(output)
            yield from (projected.embeddings, *projected.deepstack)
        if vision:
            yield model.pool_vision(output)

    return reached_parameters(model, outputs)


def reached_parameters(model: nn.Module, outputs: Callable[[], Iterable[Tensor]]) -> set[str]:
    """Returns the names of the parameters that some outputs depend on.

    Args:
        model (`nn.Module`): The model on the meta device; its tensors become fake.
        outputs (`Callable`): Runs the model on pixels and returns its outputs.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        make_fake(model)
        parameters = dict(model.requires_grad_(True).named_parameters())
        total = torch.stack([output.float().sum() for output in outputs()]).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
