"""A model and its processor, whether the name is a checkpoint of ours, its vision form, or a native LLaVA."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig
from transformers.utils.hub import cached_file, extract_commit_hash

from ..model import (
    ImageEncoder,
    ImageEncoderProcessor,
    MllmReIDConfig,
    MllmReIDModel,
    MllmReIDProcessor,
    MllmReIDVisionConfig,
    MllmReIDVisionModel,
    MllmReIDVisionProcessor,
)
from ..model.adapters import read_adapter
from ..model.weights import CONFIG, load_whole, native_config, read_config, read_fields
from ..options.arguments import ModelArguments
from ..options.parser import build_options
from ..utils.errors import UserError, is_our_fault
from ..utils.json_files import refuse_special_files
from ..utils.processes import this_process
from .adapters import LORA_FIELDS, AdapterArguments, checkpoint_adapters, prepare_training, refuse_other_adapters

logger = logging.getLogger(__name__)


def load_model(
    arguments: ModelArguments,
    fields: dict[str, Any] | None = None,
    adapters: AdapterArguments | None = None,
    device: torch.device | None = None,
) -> tuple[MllmReIDModel, MllmReIDProcessor]:
    """The model, on the CPU, and its processor.

    fields: configuration fields that replace those of a checkpoint of ours, or make a new model around a native LLaVA.
    adapters: for training: what is trained of it, and in which form the rest is held.
    device: for training: where quantised weights are made, which are not moved afterwards; without it on a GPU.
    Raises UserError for a name that cannot be loaded, for another kind of model, for fields that it refuses, and for
    adapters that a thin checkpoint was not made with.
    """
    fields = dict(fields or {})
    name = arguments.model
    at = hub_place(arguments)
    dtype = arguments.torch_dtype
    weights: dict[str, Any] = {**at, "dtype": dtype}
    if adapters is not None and adapters.thin:
        # As stored: what is trained goes to float32 from there, not by way of the frozen weights' format.
        weights |= {"dtype": "auto", "quantization_config": adapters.quantization_config(dtype)}
        if adapters.quantize and device is not None:
            weights["device_map"] = {"": str(device)}
    kind = model_type(arguments)
    if adapters is not None and (stored_adapters := adapters_of(arguments)) is not None:
        own = {name: value for name, value in asdict(adapters).items() if adapters.has_lora or name not in LORA_FIELDS}
        refuse_other_adapters(own, stored_adapters, name)
    if kind == MllmReIDVisionConfig.model_type:
        raise UserError(f"model {name}: a vision form has no language model: give the checkpoint it was exported from")
    with _refusing(name):
        if kind == "llava":
            size = {side: fields[side] for side in ("height", "width") if side in fields}
            processor = MllmReIDProcessor.from_mllm_pretrained(name, **at, **size)
            fields |= {"height": processor.height, "width": processor.width}
            fields["image_prefix_ids"] = processor.image_prefix_ids
            model = MllmReIDModel.from_mllm_pretrained(name, **weights, **fields)
        else:
            config = changed_config(read_config(MllmReIDConfig, name, at), fields)
            if config.image_prefix_ids is None:
                raise ValueError("config.json has no image_prefix_ids, the prompt in front of an image: get it again")
            processor = MllmReIDProcessor.from_pretrained(name, trust_remote_code=False, **at)
            processor.image_processor.size = {"height": config.height, "width": config.width}
            if config.backbone is not None:
                # Its own weights are float32 whatever this is.
                weights |= {"dtype": dtype, "is_trainable": adapters is not None}
            model = MllmReIDModel.from_pretrained(name, config=config, trust_remote_code=False, **weights)
    if adapters is not None and model.config.backbone is None:
        # A folder is named so that the checkpoint loads from any working directory.
        backbone = os.path.abspath(name) if os.path.isdir(name) else name
        prepare_training(model, adapters, backbone=backbone, revision=commit_of(arguments), dtype=dtype)
    return model, processor


def changed_config(stored: MllmReIDConfig, fields: Mapping[str, Any]) -> MllmReIDConfig:
    """A checkpoint's configuration with the given fields, checked anew; says which heads they make new or drop.

    Raises ValueError for what the configuration refuses, and for other heads on a thin checkpoint.
    """
    config = MllmReIDConfig.from_dict({**stored.to_dict(), **fields})
    heads = [head for head in config.reid_heads if head not in stored.reid_heads or config.bnneck != stored.bnneck]
    gone = [head for head in stored.reid_heads if head not in config.reid_heads]
    if heads or gone:
        changes = [f"{name} is {getattr(config, name)}" for name in ("reid_on", "bnneck") if name in fields]
        said = " and ".join(changes)
        if stored.backbone is not None:
            raise ValueError(
                f"{said}: a thin checkpoint keeps its heads: leave it out, or export the checkpoint --to full first"
            )
        words = [f"{' and '.join(names)} {what}" for names, what in ((heads, "new"), (gone, "dropped")) if names]
        logger.warning("%s, unlike in the checkpoint: ReID heads: %s", said, ", ".join(words))
    return config


def adapters_of(arguments: ModelArguments) -> dict[str, Any] | None:
    """What a thin checkpoint was trained with, see `checkpoint_adapters`; None for any other model.

    Raises UserError where it is broken.
    """
    if model_type(arguments) != MllmReIDConfig.model_type:
        return None
    with _refusing(arguments.model):
        hub = hub_place(arguments)
        config = read_config(MllmReIDConfig, arguments.model, hub)
        if config.backbone is None:
            return None
        lora, weights = (None, {}) if config.adapter is None else read_adapter(arguments.model, config.adapter, hub)
        return checkpoint_adapters(config, lora, weights)


def resolve_adapters(arguments: ModelArguments, given: Mapping[str, Any]) -> AdapterArguments:
    """The adapters of a training from the options that were given, by field.

    A thin checkpoint goes on with its own; `quantize` alone is chosen anew, as it is of the backbone's loading. Raises
    UserError for an option that the checkpoint was not made with.
    """
    stored = adapters_of(arguments)
    if stored is not None:
        refuse_other_adapters(given, stored, arguments.model)
        given = {**{name: value for name, value in stored.items() if value is not None}, **given}
    return build_options((AdapterArguments,), given, "train")[0]


def commit_of(arguments: ModelArguments) -> str | None:
    """The commit of a model on the Hub, which a branch's name does not pin; None for a folder."""
    if os.path.isdir(arguments.model):
        return None
    return extract_commit_hash(cached_file(arguments.model, "config.json", revision=arguments.revision), None)


def load_config(arguments: ModelArguments, fields: dict[str, Any]) -> MllmReIDConfig:
    """The configuration that `load_model` would build from, without weights. Raises UserError as there."""
    at = hub_place(arguments)
    with _refusing(arguments.model):
        if model_type(arguments) == "llava":
            return MllmReIDConfig(mllm_config=native_config(arguments.model, at), **fields)
        return changed_config(read_config(MllmReIDConfig, arguments.model, at), fields)


def load_encoder(
    arguments: ModelArguments, fields: dict[str, Any] | None = None
) -> tuple[ImageEncoder, ImageEncoderProcessor]:
    """What embeds images: a vision form, or what `load_model` loads. Raises UserError as there."""
    if model_type(arguments) != MllmReIDVisionConfig.model_type:
        return load_model(arguments, fields)
    name = arguments.model
    at: dict[str, Any] = {**hub_place(arguments), "trust_remote_code": False}
    if fields:
        raise UserError(f"model {name}: a vision form has its settings from its export: leave out {', '.join(fields)}")
    with _refusing(name):
        processor = MllmReIDVisionProcessor.from_pretrained(name, **at)
        return MllmReIDVisionModel.from_pretrained(name, dtype=arguments.torch_dtype, **at), processor


def load_writer(kind: Any, arguments: ModelArguments) -> Any:
    """A native model that writes texts, by transformers' class `kind`: whole, from safetensors, without its own code.

    Raises UserError for a name that cannot be loaded, and where a weight is missing, which would be random.
    """
    name, at = arguments.model, hub_place(arguments)
    options = {**at, "dtype": arguments.torch_dtype, "trust_remote_code": False}
    with _refusing(name, "not loadable as an image-text-to-text model"):
        stored = read_config(AutoConfig, name, at, trust_remote_code=False)
        # Weights that the class has no place for are another class's, as of a head for training.
        return load_whole(kind.from_pretrained, name, at, options, stored=stored, left=[""])[0]


def load_native_processor(arguments: ModelArguments) -> MllmReIDProcessor:
    """The processor of a native LLaVA. Raises UserError for a name that cannot be loaded."""
    with _refusing(arguments.model):
        return MllmReIDProcessor.from_mllm_pretrained(arguments.model, revision=arguments.revision)


def to_device(model: nn.Module) -> None:
    """Moves a model to this process's GPU, where there is one."""
    model.to(this_process().device)


def model_type(arguments: ModelArguments) -> str:
    """What lies under the name: "mllmreid", "mllmreid_vision" or "llava". Raises UserError for anything else."""
    if os.path.isdir(arguments.model):
        refuse_special_files(arguments.model)
    remedy = "give a checkpoint's folder (for --dry_run its config.json is enough) or a Hub name"
    with _refusing(arguments.model, "not loadable", remedy):
        kind = (read_fields(arguments.model, CONFIG, hub_place(arguments), required=True) or {}).get("model_type")
    if kind not in (MllmReIDConfig.model_type, MllmReIDVisionConfig.model_type, "llava"):
        raise UserError(
            f"model {arguments.model}: of type {repr(kind)[:60]}: give a native LLaVA or a checkpoint of ours"
        )
    return str(kind)


def hub_place(arguments: ModelArguments) -> dict[str, Any]:
    """Where a model's files are besides its name, as transformers takes it."""
    return {} if arguments.revision is None else {"revision": arguments.revision}


@contextmanager
def _refusing(name: str, what: str = "", remedy: str = "") -> Iterator[None]:
    """Turns what a broken or foreign model raises within the block into one line, in whatever library it does.

    What our own code stumbles over stays as it is: that is our fault.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        expected = isinstance(error, OSError | ValueError | ImportError | SafetensorError)
        if not expected and is_our_fault(error):
            raise
        reason = " ".join(str(error).split())[:300]
        reason = reason if expected else f"{type(error).__name__}: {reason}"
        said = f"{what} ({reason})" if what else reason
        raise UserError(f"model {name}: {said}{f': {remedy}' if remedy else ''}") from error
