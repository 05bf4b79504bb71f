"""`auto_find_batch_size`: the most people of K images each that one training step has the memory for."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import nn

from ..errors import UserError
from ..model import MllmReIDModel
from .arguments import ReIDTrainingArguments
from .batches import TrainCollator, TrainDataset
from .memory import optimizer_state_bytes
from .resume import RUN_FILE, facts_of, last_checkpoint, named_checkpoint


def settle_batch_size(
    args: ReIDTrainingArguments, model: MllmReIDModel, samples: TrainDataset, collator: TrainCollator
) -> None:
    """Sets `identities_per_batch` to the most that fit, at most what it is; `images_per_identity` stays.

    A run that goes on from a checkpoint keeps the number it began with. All processes take the smallest of theirs.
    Raises UserError where a single person's images do not fit, with cached gradients, whose memory is not P's, and
    where no process is to hold the whole model.
    """
    if args.deepspeed_plugin is not None or args.fsdp or os.environ.get("ACCELERATE_USE_FSDP") == "true":
        raise UserError(
            "auto_find_batch_size: tries steps of the whole model in each process, which FSDP and DeepSpeed are there "
            "to avoid: set it to false and choose identities_per_batch"
        )
    if args.grad_cache_chunk:
        raise UserError(
            f"auto_find_batch_size: with grad_cache_chunk ({args.grad_cache_chunk}) a step's memory is that of the "
            "chunk, whatever P is: set it to false and choose both"
        )
    found, why = _of_checkpoint(args), "as the checkpoint's run has it"
    if found is None:
        why = f"the most that fit with {args.images_per_identity} images each"
        nn.Module.to(model, args.device)
        most = min(args.identities_per_batch, samples.num_identities // args.world_size)
        found = largest(lambda people: _try_step(args, model, samples, collator, people), most)
        if dist.is_available() and dist.is_initialized():
            number = torch.tensor(found, device=args.device)
            dist.all_reduce(number, op=dist.ReduceOp.MIN)
            found = int(number)
    if found == 0:
        raise UserError(
            f"auto_find_batch_size: not even one person's {args.images_per_identity} images fit: set "
            "activation_checkpointing to true, or lower height, width or max_target_tokens; train --dry_run tells more"
        )
    args.identities_per_batch = found
    args.per_device_train_batch_size = found * args.images_per_identity
    # Settled: the Trainer would halve the batch, K and all.
    args.auto_find_batch_size = False
    if args.process_index == 0:
        print(f"identities_per_batch: {found}, {why}")


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, 0 where none does; what fits must be all up to some number."""
    if most < 1 or fits(most):
        return most
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _try_step(
    args: ReIDTrainingArguments, model: MllmReIDModel, samples: TrainDataset, collator: TrainCollator, people: int
) -> bool:
    """Whether a step's memory is there: longest texts, forward, backward, and the optimiser's state beside them."""
    lengths = [max((len(prompt) + len(target) for prompt, target in texts), default=0) for texts in samples.texts]
    longest = lengths.index(max(lengths))
    trained = [p for p in model.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trained)
    # DDP has its own copy of the gradients.
    size = optimizer_state_bytes(args) * count + (4 * count if args.world_size > 1 else 0)
    training = model.training
    if args.activation_checkpointing:
        # As the Trainer does, later.
        given = dict(args.activation_checkpointing_kwargs or {})  # type: ignore[arg-type]
        own = {name: given.pop(name) for name in ("every_n_layers", "offload") if name in given}
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=given or None, **own)
    try:
        reserved = torch.empty(size, dtype=torch.uint8, device=args.device)
        batch = collator([samples[longest, 0, i] for i in range(people * args.images_per_identity)])
        # Without the ReID losses, which wait for the other processes; they take next to no memory.
        batch.pop("person_ids")
        batch = {name: rows.to(args.device) for name, rows in batch.items()}
        with torch.autocast(args.device.type, torch.bfloat16 if args.bf16 else torch.float16, args.bf16 or args.fp16):
            output = model.train()(**batch)
        sums = [*output.features.values(), *(output.language_loss_sums or {}).values()]
        sums += [] if output.text_features is None else [output.text_features]
        torch.stack([value.float().sum() for value in sums if value.requires_grad]).sum().backward()
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


def _of_checkpoint(args: ReIDTrainingArguments) -> int | None:
    """What the run began with that this one goes on from; None for a start."""
    last = named_checkpoint(args) or last_checkpoint(Path(str(args.output_dir)))
    if last is None or str(args.resume_from_checkpoint).lower() == "false":
        return None
    people = facts_of(last).get("settings", {}).get("identities_per_batch")
    if people is not None and (not isinstance(people, int) or people < 1):
        raise UserError(f"{last / RUN_FILE}: identities_per_batch is {people!r}: give another checkpoint")
    return people
