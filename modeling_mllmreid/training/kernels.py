"""Kernels: the attention, those of liger-kernel in the language model, and decoder layers that torch.compile compiles.

All are off by default, as none has been measured on a GPU. They change how a training step computes, and neither
weights nor their names. Evaluation is not compiled.
"""

import logging
import sys
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.utils import is_liger_kernel_available

from ..model import MllmReIDModel
from ..utils.errors import UserError
from .engines import sharding_of
from .setting_errors import setting_errors

logger = logging.getLogger(__name__)

# Modes of torch.compile without CUDA graphs: those keep the outputs of a layer only until it runs again, and the layers
# share one graph.
MODES = ("default", "max-autotune-no-cudagraphs")
# Liger's rotary embedding is left out, since its users report worse results of LLaVA. Its cross-entropy is no part of
# the language model without the output layer, and the loss here reads logits at label positions alone.
LEFT_OUT = {"rope": False, "cross_entropy": False, "fused_linear_cross_entropy": False}


def check_kernels(args: TrainingArguments) -> None:
    """Checks the settings of kernels before the model is loaded.

    Args:
        args (`TrainingArguments`): Training arguments.

    Raises:
        UserError: liger-kernel is not installed or has no GPU, or torch.compile does not know a setting.
    """
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise UserError("use_liger_kernel: liger-kernel is not installed: pip install liger-kernel, or leave it out")
    if args.use_liger_kernel and args.device.type != "cuda":
        raise UserError(
            f"use_liger_kernel: its kernels need a CUDA GPU, and this training uses {args.device.type}: leave it out"
        )
    if not args.torch_compile:
        return
    # Accelerate checks the name too.
    backends = sorted(
        {*torch.compiler.list_backends(exclude_tags=())} & {name.lower() for name in DynamoBackend.list()}
    )
    if args.torch_compile_backend not in backends:
        raise UserError(f"torch_compile_backend {args.torch_compile_backend}: give one of {', '.join(backends)}")
    if args.torch_compile_mode is None:
        return
    if args.torch_compile_backend != "inductor" or args.torch_compile_mode not in MODES:
        raise UserError(
            f"torch_compile_mode {args.torch_compile_mode}: give {' or '.join(MODES)}, with torch_compile_backend "
            "inductor, or leave it out"
        )


def prepare_kernels(trainer: Trainer) -> None:
    """Changes the model of a new Trainer as `attn_implementation`, `use_liger_kernel` and `torch_compile` say.

    Args:
        trainer (`Trainer`): A Trainer that has not begun to train.

    Raises:
        UserError: As in `check_kernels`, the model has no such attention or no language model, or FSDP or DeepSpeed
            shards it.
    """
    args: Any = trainer.args
    model: Any = trainer.model
    check_kernels(args)
    if args.attn_implementation:
        with setting_errors(f"attn_implementation {args.attn_implementation}"):
            model.set_attn_implementation(args.attn_implementation)
    for name in ("use_liger_kernel", "torch_compile"):
        if not getattr(args, name):
            continue
        if not isinstance(model, MllmReIDModel):
            raise UserError(f"{name}: this encoder has no language model: leave it out")
        if engine := sharding_of(trainer):
            raise UserError(f"{name}: not supported with {engine}: use DDP, or leave it out")
    if args.use_liger_kernel:
        use_liger(model.language_model)
    if args.torch_compile:
        # Otherwise Accelerate compiles the whole model too, and the names of all weights change.
        trainer.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
        compile_layers(model.language_model, backend=args.torch_compile_backend, mode=args.torch_compile_mode)


def use_liger(language_model: Any) -> int:
    """Makes the norms and MLPs of a language model compute by the fused kernels of liger-kernel.

    Its backward pass overwrites what the forward pass saved, without a trace for autograd: a graph serves for one
    backward pass, and with `retain_graph` the next gradients would be wrong.

    Args:
        language_model (`PreTrainedModel`): Language model without output layer, changed in place.

    Returns:
        `int`: Number of modules that were changed; 0, with a warning, for a family that liger-kernel does not know.
    """
    from liger_kernel.transformers import _apply_liger_kernel_to_instance

    # Liger also replaces classes in transformers' module. Other models of the process use those, on the CPU too.
    module = sys.modules[type(language_model).__module__]
    classes, reason = dict(vars(module)), "it does not know this family"
    before = _own_forwards(language_model)
    try:
        _apply_liger_kernel_to_instance(model=language_model, **LEFT_OUT)
    except (ImportError, AttributeError, TypeError) as error:  # it was written for another version of transformers
        reason = " ".join(str(error).split())[:200]
    finally:
        vars(module).update(classes)
    changed = len(_own_forwards(language_model)) - len(before)
    if not changed:
        kind = language_model.config.model_type
        logger.warning("use_liger_kernel: a language model of type %s runs without liger-kernel: %s", kind, reason)
    return changed


def _own_forwards(language_model: nn.Module) -> list[str]:
    """Returns the names of the modules whose forward pass is not that of their class, as of a fused LoRA."""
    return [name for name, module in language_model.named_modules() if "forward" in vars(module)]


def compile_layers(language_model: Any, *, backend: str, mode: str | None = None) -> int:
    """Makes the decoder layers of a language model run compiled in training mode; the layers share one graph.

    A layer runs as before in evaluation mode, where batches have many shapes and generation keeps a cache.

    Args:
        language_model (`PreTrainedModel`): Language model without output layer, changed in place.
        backend (`str`): Backend of `torch.compile`.
        mode (`str`, *optional*): One of `MODES`.

    Returns:
        `int`: Number of layers.
    """
    kinds = {kind: _compiled(kind, backend, mode) for kind in {type(layer) for layer in language_model.layers}}
    for layer in language_model.layers:
        layer.__class__ = kinds[type(layer)]
    return len(language_model.layers)


def _compiled(kind: type[nn.Module], backend: str, mode: str | None) -> type[nn.Module]:
    """Returns a subclass of a layer's class, of the same name, that is compiled in training mode.

    transformers wraps the forward pass of each subclass by the checkpointing of activations, and none within it. So
    what is compiled has no checkpoint inside, and draws the same random numbers when it is computed again.
    """
    compiled = torch.compile(kind.forward, backend=backend, mode=mode)

    def forward(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return (compiled if layer.training else kind.forward)(layer, *args, **kwargs)

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
