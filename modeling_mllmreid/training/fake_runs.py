"""Fake runs: a model on tensors without memory, and the parameters that a loss reaches, found by such a run."""

import copy
import functools
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import CellType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..model import ImageEncoder, MllmReIDVisionConfig


class _RealNumbers(TorchFunctionMode):
    """Computes whole numbers for real within a fake run: some encoders split their states by the sizes of a grid."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs a function without fake tensors if it makes whole numbers out of whole numbers."""
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        numbers = all(not isinstance(tensor, FakeTensor) and not tensor.is_floating_point() for tensor in tensors)
        if numbers and (tensors or function in (torch.tensor, torch.arange)):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        # A number among the sizes of a view or an interpolation would become a fake tensor, whose value is unknown.
        with unset_fake_temporarily():
            args, kwargs = tree_map_only(Tensor, _plain_number, (args, kwargs))
        return function(*args, **kwargs)


def _plain_number(tensor: Tensor) -> Tensor | int:
    """Returns a whole number of one element as an int, another tensor as it is."""
    is_number = not isinstance(tensor, FakeTensor) and tensor.ndim == 0 and tensor.dtype == torch.int64
    # Under `vmap`, which makes the masks of some language models, one element stands for many.
    return int(tensor) if is_number and not is_functorch_wrapped_tensor(tensor) else tensor


@contextmanager
def fake_run(model: nn.Module) -> Iterator[None]:
    """Runs a model within the block on fake tensors on the CPU, which have a shape and a dtype but no memory.

    Args:
        model (`nn.Module`): The model, usually on the meta device. Its weights and buffers become fake, in place.
    """
    with _forgotten_caches(), FakeTensorMode(allow_non_fake_inputs=True), _RealNumbers():
        # Once for each parameter: tied weights stay one.
        fakes = {
            parameter: nn.Parameter(
                torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu"), requires_grad=parameter.requires_grad
            )
            for parameter in model.parameters()
        }
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = fakes[parameter]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
        yield


@contextmanager
def _forgotten_caches() -> Iterator[None]:
    """Empties the caches of transformers' functions after the block.

    DINOv3 caches the positions of its patches by their number. A cached fake tensor would break the next real run.
    """
    try:
        yield
    finally:
        for name, module in list(sys.modules.items()):
            if name.startswith("transformers.models.") and module is not None:
                for cache in _caches(module):
                    cache.cache_clear()


def _caches(module: ModuleType) -> Iterator[Any]:
    """Yields the caches of a module's functions and methods, also those that a function calls from its closure."""
    own = [value for value in list(vars(module).values()) if getattr(value, "__module__", None) == module.__name__]
    own += [method for value in own if isinstance(value, type) for method in vars(value).values()]
    for function in own:
        for value in (function, *(getattr(function, "__closure__", None) or ())):
            value = getattr(value, "cell_contents", None) if isinstance(value, CellType) else value
            if isinstance(value, functools._lru_cache_wrapper):
                yield value


def image_parameters(model: ImageEncoder, *, image: bool, vision: bool) -> set[str]:
    """Returns the names of the parameters that compute the image embeddings, the vision feature or both.

    Args:
        model (`MllmReIDModel` or `MllmReIDVisionModel`): The model.
        image (`bool`): Whether a loss reads the embeddings of the image tokens.
        vision (`bool`): Whether a loss reads the vision feature.

    Returns:
        `set[str]`: Names within the model, without a LoRA.
    """
    config: Any = copy.deepcopy(model.config)
    if config.model_type == MllmReIDVisionConfig.model_type:
        config.lora_modules = None
    with torch.device("meta"):
        # In eval mode, since a batch norm does not train on one crop.
        fake: Any = type(model)(config).eval()

    def outputs() -> Iterable[Tensor]:
        size: Any = (1, 3, config.height, config.width)
        output = fake.run_tower(torch.empty(size))
        if image:
            projected = fake.project_image(output)
            yield from (projected.embeddings, *projected.deepstack)
        if vision:
            yield fake.pool_vision(output)

    return reached_parameters(fake, outputs)


def reached_parameters(model: nn.Module, outputs: Callable[[], Iterable[Tensor]]) -> set[str]:
    """Returns the names of the parameters that some outputs depend on.

    Names alone would not be enough: which norms and pooling heads lie on the way depends on the encoder.

    Args:
        model (`nn.Module`): The model on the meta device; its tensors become fake.
        outputs (`Callable`): Runs the model on pixels and returns its outputs.
    """
    with fake_run(model):
        parameters = dict(model.requires_grad_(True).named_parameters())
        total = torch.stack([output.float().sum() for output in outputs()]).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    return {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
