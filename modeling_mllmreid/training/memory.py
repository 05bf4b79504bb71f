"""The memory of a training step: computed from shapes, and the largest batch that fits."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..model import MllmReIDConfig, MllmReIDModel
from ..utils.errors import UserError
from .adapters import AdapterArguments, apply_adapters
from .arguments import BatchArguments, ReIDTrainingArguments
from .batches import TrainCollator, TrainDataset
from .parameters import freeze_unused_parameters
from .resume import RUN_FILE, last_checkpoint, named_checkpoint, read_fingerprint

# nf4 in blocks of 64 with an 8-bit scale each and a float32 for 256 scales; 8 bits with a float32 a row.
QUANTISED_BYTES = {"4bit": 0.5 + 1 / 64 + 4 / (64 * 256), "8bit": 1.001}
# Bytes of optimiser state for each trained parameter, by what the optimiser's name holds; the first found counts.
STATE_BYTES = {"8bit": 2, "adafactor": 0, "sgd": 0, "lion": 4, "adam": 8}
# Tokens of the template, and of a caption: long ones of the published caption sets.
PROMPT_TOKENS, CAPTION_TOKENS = 24, 64


@dataclass
class Memory:
    """Bytes by what they are for, and the parameters that they are of."""

    parameters: int
    trained: int
    trained_by_part: dict[str, int]
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of them together, without the device's own context and without fragmentation."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits

    def format(self) -> str:
        """A table for the screen."""
        rows = [f"{name:<12} {count:>15,} trained" for name, count in self.trained_by_part.items()]
        rows.append(f"{'parameters':<12} {self.parameters:>15,}, {self.trained:,} trained")
        for name in ("weights", "gradients", "optimizer", "activations", "logits", "total"):
            rows.append(f"{name:<12} {getattr(self, name) / 2**30:>15.2f} GiB")
        return "\n".join(rows)


def estimate_memory(
    config: MllmReIDConfig,
    adapters: AdapterArguments,
    args: ReIDTrainingArguments,
    batches: BatchArguments,
    *,
    dtype: torch.dtype,
) -> Memory:
    """The memory of one training step of this model on one device; no weight is made.

    dtype: of the frozen weights. Activations are the tensors that autograd keeps in a forward pass over fake tensors
    (one and two images, which separates what grows with the batch), with activation checkpointing the inputs of all
    blocks and one block whole.
    """
    with torch.device("meta"):
        model = MllmReIDModel(config)
        apply_adapters(model, adapters, dtype)
    freeze_unused_parameters(model)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    parts = {
        "llm": "language_model",
        "vision": "vision_tower",
        "projector": "multi_modal_projector",
        "heads": "reid_head",
    }
    by_part = {part: sum(p.numel() for name, p in trained if key in name) for part, key in parts.items()}
    by_part["lm_head"] = sum(p.numel() for name, p in trained if "lm_head" in name)
    count = sum(p.numel() for _, p in trained)
    labels = batches.max_target_tokens * args.per_device_train_batch_size * (2 if batches.text_branch else 1)
    language = config.loss_lambda < 1
    vocabulary = config.get_text_config().vocab_size
    return Memory(
        parameters=sum(p.numel() for p in model.parameters()),
        trained=count,
        trained_by_part={part: number for part, number in by_part.items() if number},
        weights=_weight_bytes(model, adapters.quantize),
        gradients=4 * count,
        optimizer=optimizer_state_bytes(args) * count,
        activations=_activation_bytes(model, args, batches),
        # In the model's format, in float32 for the loss, and their gradient.
        logits=labels * vocabulary * (2 + 4 + 4) if language else 0,
    )


def optimizer_state_bytes(args: ReIDTrainingArguments) -> int:
    """Bytes of the optimiser's state for each trained parameter."""
    name = str(getattr(args.optim, "value", args.optim))
    return next((size for key, size in STATE_BYTES.items() if key in name), 8)


def _weight_bytes(model: MllmReIDModel, quantize: str | None) -> int:
    size = 0.0
    for name, module in model.named_modules():
        quantised = quantize and type(module) is nn.Linear and "language_model." in name and ".lora_" not in name
        for parameter in module.parameters(recurse=False):
            bytes_of_one = QUANTISED_BYTES[str(quantize)] if quantised else parameter.element_size()
            size += parameter.numel() * bytes_of_one
    return int(size)


def _activation_bytes(model: MllmReIDModel, args: ReIDTrainingArguments, batches: BatchArguments) -> int:
    """Bytes that autograd keeps for the backward pass of one batch."""
    config = model.config
    image = config.num_image_tokens + PROMPT_TOKENS + (batches.max_target_tokens if config.loss_lambda < 1 else 0)
    runs_llm = config.loss_lambda < 1 or "llm" in config.reid_heads
    text = 0
    if config.loss_lambda < 1 and batches.text_branch:
        text = CAPTION_TOKENS + PROMPT_TOKENS + batches.max_target_tokens
    elif config.reid_text:
        text = CAPTION_TOKENS + PROMPT_TOKENS
    lengths = ([image] if runs_llm else []) + ([text] if text else [])
    with FakeTensorMode(allow_non_fake_inputs=True):
        _make_fake(model)
        one, two = (_kept(model, size, lengths, args.bf16 or args.fp16) for size in (1, 2))
    growth = {name: two[name] - one[name] for name in one}
    fixed = {name: one[name] - growth[name] for name in one}
    batch = args.per_device_train_batch_size
    if not args.activation_checkpointing:
        return sum(fixed.values()) + batch * sum(growth.values())
    tower, text_config = config.vision_config, config.get_text_config()
    patches = config.num_image_tokens + 1
    inputs = {
        "tower": tower.num_hidden_layers * patches * tower.hidden_size * 4,
        "language_model": text_config.num_hidden_layers * sum(lengths) * text_config.hidden_size * 2,
    }
    depth = {"tower": tower.num_hidden_layers, "language_model": text_config.num_hidden_layers}
    kept = sum(size for name, size in inputs.items() if growth[name])
    # Blocks are run again one by one, and the branches one after the other.
    share = {"tower": 1.0, "language_model": max(lengths) / sum(lengths) if lengths else 0.0}
    largest = max(int((fixed[name] + batch * growth[name]) * share[name]) // depth[name] for name in growth)
    return batch * kept + largest


def _make_fake(model: nn.Module) -> None:
    """Weights and buffers as fake tensors on the CPU: shapes and formats, no memory."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                module._parameters[name] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")


def _kept(model: MllmReIDModel, images: int, lengths: list[int], half: bool) -> dict[str, int]:
    """Bytes kept in tower with projector, and in the language model, for so many images with rows of these lengths."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # held, so that no other tensor takes a storage's place

    def keep(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            kept.setdefault(key, tensor)
        return tensor

    def size() -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    config = model.config
    embeddings: Tensor = model.get_input_embeddings().weight  # type: ignore[assignment]
    width = config.get_text_config().hidden_size
    saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with saved, torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
        image = model._image_embeddings(model._tower(torch.empty(images, 3, config.height, config.width)))
        tower = size()
        for index, length in enumerate(lengths):
            row = torch.empty(images, length, width, dtype=embeddings.dtype)
            if index == 0:
                row = torch.cat([image.to(row.dtype), row[:, image.shape[1] :]], dim=1)
            elif embeddings.requires_grad:
                row.requires_grad_(True)
            model._language_model(row, torch.ones(images, length, dtype=torch.long), whole=True)
    return {"tower": tower, "language_model": size() - tower}


def find_batch_size(
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
    people = read_fingerprint(last).get("settings", {}).get("identities_per_batch")
    if people is not None and (not isinstance(people, int) or people < 1):
        raise UserError(f"{last / RUN_FILE}: identities_per_batch is {people!r}: give another checkpoint")
    return people
