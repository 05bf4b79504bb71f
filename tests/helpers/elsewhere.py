"""Simulates devices that this machine does not have, with CPU tensors that report another device.

As between a CPU and GPUs, a function of tensors on two devices raises RuntimeError, and nothing moves without `.to`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
MOVES = {"to", "cpu", "cuda", "copy_", "type"}


class Elsewhere(torch.Tensor):
    """A tensor on the CPU that reports the device `place`."""

    place = CPU

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return _called(function, args, kwargs or {})


class _Mode(TorchFunctionMode):
    """New tensors have none of these among their arguments."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return _called(function, args, kwargs or {})


def _called(function, args, kwargs):
    name = getattr(function, "__name__", "")
    if name == "__get__":
        attribute = getattr(function.__self__, "__name__", "")
        if attribute == "device":
            return place_of(args[0])
        if attribute == "is_cuda":
            return place_of(args[0]).type == "cuda"
    if name == "numpy" and place_of(args[0]) != CPU:
        raise TypeError(f"a tensor on {place_of(args[0])} has no memory for NumPy")
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    # A single number on the CPU goes with any device.
    places = {place_of(of) for of in tensors if isinstance(of, Elsewhere) or _plain(of).dim()}
    if len(places) > 1 and name not in MOVES:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, but found {places}")
    place = place_of(args[0]) if name == "copy_" else next(iter(places), CPU)
    if name == "cpu":
        place = CPU
    if name == "to":
        place = next((_device(of) for of in (*args[1:], *kwargs.values()) if _device(of)), place)
    elif kwargs.get("device") is not None:
        place = torch.device(kwargs["device"])
    args, kwargs = tree_map(lambda of: CPU if isinstance(of, torch.device) else _plain(of), (args, kwargs))
    if isinstance(kwargs.get("device"), str):
        kwargs["device"] = CPU
    if name == "to":
        args = tuple(CPU if isinstance(of, str) else of for of in args)
    with torch._C.DisableTorchFunctionSubclass():
        result = function(*args, **kwargs)
    return result if place == CPU else tree_map(lambda of: at(of, place) if isinstance(of, Tensor) else of, result)


def _device(of) -> torch.device | None:
    if isinstance(of, Tensor):
        return place_of(of)
    return torch.device(of) if isinstance(of, (str, torch.device)) else None


def _plain(of):
    if not isinstance(of, Elsewhere):
        return of
    with torch._C.DisableTorchFunctionSubclass():
        return of.as_subclass(Tensor)


def place_of(tensor: Tensor) -> torch.device:
    """Returns the device that a tensor reports."""
    return tensor.place if isinstance(tensor, Elsewhere) else CPU


def at(values: Tensor, place: str | torch.device) -> Tensor:
    """Returns a view of a tensor that reports another device."""
    with torch._C.DisableTorchFunctionSubclass():
        made = values.as_subclass(Elsewhere)
    made.place = torch.device(place)
    return made


def put(module: nn.Module, place: str) -> None:
    """Makes the weights and buffers of a module report another device."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            tensors.update({name: at(_plain(of), place) for name, of in tensors.items() if of is not None})


def put_with_hook(module: nn.Module, place: str) -> None:
    """Like `put`, and moves the inputs of the module there, as accelerate does for a device map."""
    put(module, place)

    def moved(_, args, kwargs):
        return tree_map(lambda of: of.to(place) if isinstance(of, Tensor) else of, (args, kwargs))

    module.register_forward_pre_hook(moved, with_kwargs=True)


@contextmanager
def devices_elsewhere() -> Iterator[None]:
    """Within the block, tensors can be created on simulated devices and moved to them."""
    with _Mode():
        yield
