"""The FLOPs of a training step, from the configuration of a model alone."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ..model import MllmReIDConfig, MllmReIDModel
from .adapters import AdapterArguments
from .arguments import ReIDTrainingArguments
from .batch_arguments import BatchArguments
from .fake_runs import fake_run
from .memory import StepTerm, model_without_weights, step_terms
from .parameters import freeze_unused_parameters


def step_flops(
    config: MllmReIDConfig,
    adapters: AdapterArguments,
    args: ReIDTrainingArguments,
    batches: BatchArguments,
    *,
    dtype: torch.dtype,
) -> float:
    """Counts the FLOPs of one training step on one device, without allocating weights.

    Torch counts the matrix products of a forward and backward pass over fake tensors. Passes with one and two images
    separate the part that grows with the batch. What activation checkpointing computes again is not counted, nor is
    the optimiser.

    Args:
        config (`MllmReIDConfig`): Configuration of the model.
        adapters (`AdapterArguments`): What is trained.
        args (`ReIDTrainingArguments`): Training arguments.
        batches (`BatchArguments`): Settings of the batches.
        dtype (`torch.dtype`): Format of the frozen weights.

    Returns:
        `float`: FLOPs, two for each multiplication and addition.

    Raises:
        UserError: As in `apply_adapters`.
    """
    model: Any = model_without_weights(config, adapters, dtype)
    freeze_unused_parameters(model)
    flops = 0.0
    for term in step_terms(config, batches, args.per_device_train_batch_size):
        with fake_run(model):
            one, two = (_counted(model, images, term, batches) for images in (1, 2))
        flops += term.sign * (one + (term.images - 1) * (two - one))
    return flops


def _counted(model: MllmReIDModel, images: int, term: StepTerm, batches: BatchArguments) -> int:
    """Returns the FLOPs of a forward and backward pass over a number of images."""
    config: Any = model.config
    with FlopCounterMode(display=False) as counter:
        output = model.run_tower(torch.empty(images, 3, config.height, config.width))
        outputs = [model.pool_vision(output)] if "vision" in config.reid_heads else []
        if config.loss_lambda < 1 or "llm" in config.reid_heads:
            # A fake run cannot select positions by a mask, as deepstack does.
            image = model.project_image(output)._replace(deepstack=())
            tokens = image.embeddings
            outputs.append(tokens)
        for index, length in enumerate(term.lengths):
            rest = torch.empty(images, length - (tokens.shape[1] if index == 0 else 0), tokens.shape[2])
            sequences = torch.cat([tokens, rest.to(tokens)], dim=1) if index == 0 else rest.to(tokens)
            mask = torch.ones(images, length, dtype=torch.long)
            hidden, pooled = model.run_language_model(
                sequences, mask, image if index == 0 else None, whole=term.language
            )
            outputs.append(pooled)
            if term.language:
                outputs.append(_logits(model, hidden[:, -batches.max_target_tokens :]))
        total = torch.stack([values.float().mean() for values in outputs]).sum()
        if total.requires_grad:
            total.backward()
    return int(counter.get_total_flops())


def _logits(model: Any, hidden: Tensor) -> Tensor:
    """Returns the logits at label positions."""
    logits: Tensor = model.mllm.lm_head(hidden.to(model.mllm.lm_head.weight))
    return logits
