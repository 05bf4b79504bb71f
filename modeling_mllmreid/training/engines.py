"""FSDP2 and DeepSpeed under the Trainer: what they cannot do, and how they compute what DDP computes."""

from types import MethodType
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method
from transformers import Trainer, TrainerCallback
from transformers.integrations.deepspeed import set_hf_deepspeed_config

from ..utils.errors import UserError

# What is called on the model besides `forward`: FSDP2 gathers the weights of the model itself for `forward` alone.
FORWARDS = ("image_features", "encode_images", "encode_text", "image_language_loss", "generate")


def sharding_of(trainer: Trainer) -> str | None:
    """What spreads the training over the processes ("FSDP", "ZeRO-3"), or None where each holds the whole model."""
    if trainer.is_fsdp_enabled:
        return "FSDP"
    if trainer.is_deepspeed_enabled:
        return f"ZeRO-{trainer.accelerator.state.deepspeed_plugin.zero_stage}"
    return None


def prepare_sharding(trainer: Trainer) -> None:
    """To be called once, when the Trainer was made; does nothing where every process holds the whole model.

    Trained weights are float32, and under `bf16` the forward pass is autocast, as in DDP: so the loss is the same, and
    head and losses stay float32. Both engines would compute in bfloat16 throughout, the ReID head too.
    Raises UserError for what neither engine does here: see the messages.
    """
    engine = sharding_of(trainer)
    if engine is None:
        return
    args: Any = trainer.args
    model: Any = trainer.model
    state = trainer.accelerator.state
    if getattr(model.mllm, "is_quantized", False):
        raise UserError(f"quantize: {engine} does not spread weights of 4 or 8 bits: use DDP, or leave it out")
    if args.grad_cache_chunk:
        raise UserError(
            f"grad_cache_chunk is {args.grad_cache_chunk}: {engine} reduces its shards in every backward pass, of "
            "which a cached step has many: set it to 0, with activation_checkpointing true and a smaller "
            "identities_per_batch, or train with DDP"
        )
    if args.fp16:
        raise UserError(f"fp16: not under {engine}, where nothing scales its gradients here: use bf16")
    if engine == "FSDP":
        plugin = state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise UserError("fsdp_version 1: give 2, as in configs/accelerate/one_node_fsdp2.yaml")
        if "FULL" not in str(plugin.state_dict_type):
            raise UserError("fsdp_state_dict_type: set FULL_STATE_DICT: checkpoints hold whole weights")
        plugin.mixed_precision_policy = MixedPrecisionPolicy()
        trainer.add_callback(_FinishSharding())
    else:
        state.deepspeed_plugin.deepspeed_config["bf16"] = {"enabled": False}
        # The arguments put it away, so that the model was built whole; generation asks for it.
        set_hf_deepspeed_config(state.deepspeed_plugin.hf_ds_config)
    if args.bf16:
        autocast = torch.autocast(args.device.type, dtype=torch.bfloat16)
        model.forward = MethodType(autocast(model.forward.__func__), model)


def finish_sharding(model: Any) -> None:
    """Lets `FORWARDS` of a `fully_shard`-ed model gather its weights as `forward` does, and its class be ours by name.

    FSDP2 gives the model a class of its own, and `save_pretrained` would put that one's code into checkpoints.
    """
    for name in FORWARDS:
        register_fsdp_forward_method(model, name)
    sharded = type(model)
    own = next(kind for kind in sharded.__mro__ if not issubclass(kind, FSDPModule))
    sharded.__name__, sharded.__module__ = own.__name__, own.__module__


class _FinishSharding(TrainerCallback):
    """Finishes the sharding where Accelerate ended."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if isinstance(model, FSDPModule):
            finish_sharding(model)
