"""Batch size: the largest number of people whose training step fits into memory."""

import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from ..model import ImageEncoder
from ..utils.errors import UserError
from .arguments import ReIDTrainingArguments
from .batches import TrainCollator, TrainDataset
from .grad_cache import heads_at_rest
from .memory import optimizer_state_bytes
from .resume import RUN_FILE, last_checkpoint, named_checkpoint, read_fingerprint


def find_batch_size(
    args: ReIDTrainingArguments, model: ImageEncoder, samples: TrainDataset, collator: TrainCollator
) -> None:
    """Lowers `identities_per_batch` to the largest value that fits; `images_per_identity` stays.

    A resumed run keeps the value of its checkpoint. All processes take the smallest of their values.

    Args:
        args (`ReIDTrainingArguments`): Training arguments, changed in place.
        model (`MllmReIDModel` or `MllmReIDVisionModel`): The model that is trained.
        samples (`TrainDataset`): The training samples.
        collator (`TrainCollator`): Makes the batches.

    Raises:
        UserError: The images of one person do not fit, or the setting does not go with cached gradients, FSDP or
            DeepSpeed.
    """
    if args.deepspeed_plugin is not None or args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise UserError(
            "auto_find_batch_size: needs the whole model in each process, which FSDP and DeepSpeed avoid: set it to "
            "false and choose identities_per_batch"
        )
    if args.grad_cache_chunk:
        raise UserError(
            f"auto_find_batch_size: with grad_cache_chunk ({args.grad_cache_chunk}) the memory of a step depends on "
            "the chunk, not on P: set it to false and choose both"
        )
    identities, reason = _checkpoint_identities(args), "as in the checkpoint's run"
    if identities is None:
        reason = f"the most that fit with {args.images_per_identity} images each"
        nn.Module.to(model, args.device)
        most = min(args.identities_per_batch, samples.num_identities // args.world_size)
        group = args.similar_people
        identities = group * largest_fitting(
            lambda groups: _step_fits(args, model, samples, collator, groups * group), most // group
        )
        if dist.is_available() and dist.is_initialized():
            smallest = torch.tensor(identities, device=args.device)
            dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
            identities = int(smallest)
    if identities == 0:
        raise UserError(
            f"auto_find_batch_size: the {args.images_per_identity} images of one person do not fit: set "
            "activation_checkpointing to true, or lower height, width or max_target_tokens; see train --dry_run"
        )
    args.identities_per_batch = identities
    args.per_device_train_batch_size = identities * args.images_per_identity
    # Otherwise the Trainer would halve the batch without regard to P and K.
    args.auto_find_batch_size = False
    if args.process_index == 0:
        print(f"identities_per_batch: {identities}, {reason}")


def largest_fitting(fits: Callable[[int], bool], most: int) -> int:
    """Returns the largest number from 1 to `most` that fits, or 0, by bisection."""
    if most < 1 or fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _step_fits(
    args: ReIDTrainingArguments, model: ImageEncoder, samples: TrainDataset, collator: TrainCollator, identities: int
) -> bool:
    """Whether forward, backward and the optimiser's state fit into memory, with the longest texts."""
    longest = _longest_texts(samples)
    trained = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trained)
    # DDP holds a second copy of the gradients.
    reserved_bytes = optimizer_state_bytes(args) * count + (4 * count if args.world_size > 1 else 0)
    training = model.training
    if args.activation_checkpointing:
        # The Trainer does the same later.
        kwargs = dict(args.activation_checkpointing_kwargs or {})  # type: ignore[arg-type]
        options = {name: kwargs.pop(name) for name in ("every_n_layers", "offload") if name in kwargs}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=kwargs or None, **options)
    try:
        reserved = torch.empty(reserved_bytes, dtype=torch.uint8, device=args.device)
        batch = collator([samples[longest, 0, i] for i in range(identities * args.images_per_identity)])
        # Without the ReID losses, which wait for other processes. They take little memory.
        batch.pop("person_ids")
        pairs = getattr(model.config, "pair_weight", 0) > 0
        batch = {name: tensor.to(args.device) for name, tensor in batch.items()}
        with torch.autocast(args.device.type, torch.bfloat16 if args.bf16 else torch.float16, args.bf16 or args.fp16):
            model.train()
            with heads_at_rest(model):
                output = model(**batch, **({"return_reading": True} if pairs else {}))
            # The batch shows one image, and pairs need two people.
            people = torch.arange(identities * args.images_per_identity, device=args.device) // args.images_per_identity
            asker: Any = model
            asked = [asker.pair_loss(output.reading, output.features["llm"], people, None, {})] if pairs else []
        results = asked + [*output.features.values(), *(output.language_loss_sums or {}).values()]
        results += [] if output.text_features is None else [output.text_features]
        torch.stack([value.float().sum() for value in results if value.requires_grad]).sum().backward()
        del reserved
        return True
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        model.train(training)
        gc.collect()
        clear_device_cache()


def _longest_texts(samples: TrainDataset) -> int:
    """Returns the index of the image with the longest caption and target."""
    lengths = [
        max((len(samples.processor.text_prompt_ids(caption)) + len(target) for caption, target in texts), default=0)
        for texts in samples.texts
    ]
    return lengths.index(max(lengths))


def _checkpoint_identities(args: ReIDTrainingArguments) -> int | None:
    """Returns `identities_per_batch` of the run that this one continues; None for a new run."""
    last = named_checkpoint(args) or last_checkpoint(Path(str(args.output_dir)))
    if last is None or str(args.resume_from_checkpoint).lower() == "false":
        return None
    identities = read_fingerprint(last).get("settings", {}).get("identities_per_batch")
    if identities is not None and (not isinstance(identities, int) or identities < 1):
        raise UserError(f"{last / RUN_FILE}: identities_per_batch is {identities!r}: give another checkpoint")
    return identities
