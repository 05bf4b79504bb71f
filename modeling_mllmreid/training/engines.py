"""FSDP2 and DeepSpeed under the Trainer: their limits, and how they compute the same loss as DDP."""

from types import MethodType
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method
from transformers import Trainer, TrainerCallback
from transformers.integrations.deepspeed import set_hf_deepspeed_config

from ..model.adapters import quantized_as
from ..utils.errors import UserError

# Methods that run the model. FSDP2 gathers the weights of the outer model for `forward` alone.
FORWARD_METHODS = (
    "image_features",
    "encode_images",
    "encode_text",
    "image_language_loss",
    "generate",
    "read_images",
    "score_pairs",
)


def sharding_of(trainer: Trainer) -> str | None:
    """Returns the engine that shards the training ("FSDP", "ZeRO-3"), or None if each process holds the whole model."""
    if trainer.is_fsdp_enabled:
        return "FSDP"
    if trainer.is_deepspeed_enabled:
        return f"ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    return None


def prepare_sharding(trainer: Trainer) -> None:
    """Prepares a new Trainer for FSDP or DeepSpeed; does nothing if every process holds the whole model.

    Trained weights are float32, and under `bf16` the forward pass runs in autocast, as with DDP. So the loss is the
    same, and the ReID head and the losses stay float32. Both engines would compute all of them in bfloat16.

    Args:
        trainer (`Trainer`): A Trainer that has not begun to train.

    Raises:
        UserError: A setting does not work with the engine.
    """
    engine = sharding_of(trainer)
    if engine is None:
        return
    args: Any = trainer.args
    model: Any = trainer.model
    state = trainer.accelerator.state
    if quantized_as(model) is not None:
        raise UserError(f"quantize: {engine} does not shard weights of 4 or 8 bits: use DDP, or leave it out")
    if args.grad_cache_chunk:
        raise UserError(
            f"grad_cache_chunk is {args.grad_cache_chunk}: {engine} reduces its shards in every backward pass, and a "
            "cached step has many: set it to 0, with activation_checkpointing true and a smaller "
            "identities_per_batch, or train with DDP"
        )
    if args.fp16:
        raise UserError(f"fp16: not supported with {engine}, as its gradients are not scaled: use bf16")
    if engine == "FSDP":
        plugin = state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise UserError("fsdp_version 1: set 2, as in configs/accelerate/one_node_fsdp2.yaml")
        if "FULL" not in str(plugin.state_dict_type):
            raise UserError("fsdp_state_dict_type: set FULL_STATE_DICT: checkpoints hold whole weights")
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
        trainer.add_callback(_FinishSharding())
    else:
        state.deepspeed_plugin.deepspeed_config["bf16"] = {"enabled": False}
        # The arguments unset it so that the model is built whole; generation needs it again.
        set_hf_deepspeed_config(state.deepspeed_plugin.hf_ds_config)
    if args.bf16:
        autocast = torch.autocast(args.device.type, dtype=torch.bfloat16)
        model.forward = MethodType(autocast(model.forward.__func__), model)


def finish_sharding(model: Any) -> None:
    """Lets `FORWARD_METHODS` of a sharded model gather its weights, and restores the name of its class.

    FSDP2 replaces the class of the model, and `save_pretrained` would copy the code of that class into checkpoints.

    Args:
        model (`nn.Module`): A model after `fully_shard`.
    """
    for name in FORWARD_METHODS:
        register_fsdp_forward_method(model, name)
    sharded = type(model)
    own = next(kind for kind in sharded.__mro__ if not issubclass(kind, FSDPModule))
    sharded.__name__, sharded.__module__ = own.__name__, own.__module__


class _FinishSharding(TrainerCallback):
    """Calls `finish_sharding` after Accelerate has sharded the model."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if isinstance(model, FSDPModule):
            finish_sharding(model)
