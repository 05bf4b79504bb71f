"""Loading: a model and its processor from a checkpoint, a vision form or a native multimodal LLM."""

import logging
import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig
from transformers.utils.hub import cached_file, extract_commit_hash

from ..evaluation.onnx_files import refuse_single_file
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
from ..model.backbones import FAMILIES
from ..model.encoder_checkpoints import encoder_config
from ..model.prompts import check_vocabulary
from ..model.weights import load_whole, native_config, read_config
from ..options.arguments import ModelArguments
from ..options.parser import build_options
from ..utils.errors import UserError
from ..utils.processes import this_process, warn_slow_bfloat16
from .adapters import LORA_FIELDS, AdapterArguments, checkpoint_adapters, prepare_training, refuse_other_adapters
from .encoder_training import (
    encoder_adapters,
    encoder_settings,
    prepare_encoder,
    refuse_language_options,
    refuse_other_encoder_adapters,
    use_fast_layout,
)
from .model_kinds import ENCODER, WITHOUT_LANGUAGE_MODEL, loading_errors, model_type, revision_option

logger = logging.getLogger(__name__)


def load_model(
    arguments: ModelArguments,
    fields: dict[str, Any] | None = None,
    adapters: AdapterArguments | None = None,
    device: torch.device | None = None,
) -> tuple[MllmReIDModel, MllmReIDProcessor]:
    """Loads a model on the CPU, and its processor.

    Args:
        arguments (`ModelArguments`): Name or folder of the model, revision and dtype.
        fields (`dict[str, Any]`, *optional*): Configuration fields that replace those of a checkpoint, or that start a
            new model around a native multimodal LLM.
        adapters (`AdapterArguments`, *optional*): For training: what is trained, and the format of frozen weights.
        device (`torch.device`, *optional*): For training: the device of quantised weights, which cannot move later. A
            GPU by default.

    Returns:
        `tuple[MllmReIDModel, MllmReIDProcessor]`

    Raises:
        UserError: The name cannot be loaded, it is another kind of model, the configuration refuses a field, or a thin
            checkpoint has other adapters.
    """
    fields = dict(fields or {})
    name = arguments.model
    revision = revision_option(arguments)
    dtype = arguments.torch_dtype
    options: dict[str, Any] = {**revision, "dtype": dtype}
    if adapters is not None and adapters.thin:
        # In their stored format: trained weights convert to float32 from it, not by way of the frozen format.
        options |= {"dtype": "auto", "quantization_config": adapters.quantization_config(dtype)}
        if adapters.quantize and device is not None:
            options["device_map"] = {"": str(device)}
    kind = model_type(arguments)
    if adapters is not None and (stored_adapters := read_adapters(arguments)) is not None:
        settings = {
            name: value for name, value in asdict(adapters).items() if adapters.has_lora or name not in LORA_FIELDS
        }
        refuse_other_adapters(settings, stored_adapters, name)
    if kind in WITHOUT_LANGUAGE_MODEL:
        raise UserError(f"model {name}: has no language model: give a multimodal LLM or a checkpoint of one")
    refuse_pooling(fields)
    with loading_errors(name):
        if kind in FAMILIES:
            size = {side: fields[side] for side in ("height", "width") if side in fields}
            processor = MllmReIDProcessor.from_mllm_pretrained(name, **revision, **size)
            fields |= {"height": processor.height, "width": processor.width}
            fields["image_prefix_ids"] = processor.image_prefix_ids
            # A native model that `export` wrote records what it was trained on.
            stored = native_config(name, revision)
            fields |= {key: getattr(stored, key) for key in ("trained_on", "overlap") if hasattr(stored, key)}
            model = MllmReIDModel.from_mllm_pretrained(name, **options, **fields)
        else:
            config = changed_config(read_config(MllmReIDConfig, name, revision), fields)
            if config.image_prefix_ids is None:
                raise ValueError(
                    "config.json has no image_prefix_ids, the prompt in front of an image: download it again"
                )
            processor = MllmReIDProcessor.from_pretrained(name, trust_remote_code=False, **revision)
            processor.image_processor.size = {"height": config.height, "width": config.width}
            check_processor(processor, config)
            if config.backbone is not None:
                # A thin checkpoint stores its own weights in float32, whatever this dtype is.
                options |= {"dtype": dtype, "is_trainable": adapters is not None}
            model = MllmReIDModel.from_pretrained(name, config=config, trust_remote_code=False, **options)
    if adapters is not None and model.config.backbone is None:
        # An absolute path loads from any working directory.
        backbone = os.path.abspath(name) if os.path.isdir(name) else name
        prepare_training(model, adapters, backbone=backbone, revision=model_commit(arguments), dtype=dtype)
    return model, processor


def check_processor(processor: MllmReIDProcessor, config: MllmReIDConfig) -> None:
    """Raises ValueError if a checkpoint's processor makes other prompts than its model reads."""
    made = (processor.num_image_tokens, processor.image_token_id, processor.image_prefix_ids)
    image_token_id = config.mllm_config.image_token_id  # type: ignore[union-attr]
    read = (config.num_image_tokens, image_token_id, list(config.image_prefix_ids or ()))
    names = ("image tokens of a crop", "id of the image token", "ids in front of the image")
    for name, ours, theirs in zip(names, made, read, strict=True):
        if ours != theirs:
            raise ValueError(
                f"its processor is another model's: {name} {str(ours)[:60]}, and the model reads {str(theirs)[:60]}: "
                "get the processor's files of the same checkpoint"
            )
    check_vocabulary(processor, config.get_text_config().vocab_size)


def changed_config(stored: MllmReIDConfig, fields: Mapping[str, Any]) -> MllmReIDConfig:
    """Replaces fields of a checkpoint's configuration, and logs which ReID heads become new or are dropped.

    Args:
        stored (`MllmReIDConfig`): Configuration of the checkpoint.
        fields (`Mapping[str, Any]`): Fields to replace.

    Returns:
        `MllmReIDConfig`: The new configuration, validated.

    Raises:
        ValueError: The configuration refuses a field, or a thin checkpoint would get other heads.
    """
    config = MllmReIDConfig.from_dict({**stored.to_dict(), **fields})
    new_heads = [head for head in config.reid_heads if head not in stored.reid_heads or config.bnneck != stored.bnneck]
    dropped_heads = [head for head in stored.reid_heads if head not in config.reid_heads]
    if new_heads or dropped_heads:
        changes = [f"{name} is {getattr(config, name)}" for name in ("reid_on", "bnneck") if name in fields]
        change = " and ".join(changes)
        if stored.backbone is not None:
            raise ValueError(
                f"{change}: a thin checkpoint keeps its heads: leave it out, or export the checkpoint --to full first"
            )
        outcomes = ((new_heads, "new"), (dropped_heads, "dropped"))
        words = [f"{' and '.join(heads)} {outcome}" for heads, outcome in outcomes if heads]
        logger.warning("%s, unlike in the checkpoint: ReID heads: %s", change, ", ".join(words))
    return config


def read_adapters(arguments: ModelArguments) -> dict[str, Any] | None:
    """Reads the adapter settings of a thin checkpoint, or of an encoder with a LoRA.

    Args:
        arguments (`ModelArguments`): Name or folder of the model.

    Returns:
        `dict[str, Any]`: See `checkpoint_adapters` and `encoder_adapters`; None for any other model.

    Raises:
        UserError: The checkpoint is broken.
    """
    kind, revision = model_type(arguments), revision_option(arguments)
    with loading_errors(arguments.model):
        if kind == MllmReIDVisionConfig.model_type:
            return encoder_adapters(read_config(MllmReIDVisionConfig, arguments.model, revision))
        if kind != MllmReIDConfig.model_type:
            return None
        config = read_config(MllmReIDConfig, arguments.model, revision)
        if config.backbone is None:
            return None
        lora, weights = (
            (None, {}) if config.adapter is None else read_adapter(arguments.model, config.adapter, revision)
        )
        return checkpoint_adapters(config, lora, weights)


def resolve_adapters(arguments: ModelArguments, options: Mapping[str, Any]) -> AdapterArguments:
    """Combines the adapter options of a training with those of a thin checkpoint, or of an encoder with a LoRA.

    They keep their adapters. Only `quantize` may change, as it belongs to the loading of the backbone.

    Args:
        arguments (`ModelArguments`): Name or folder of the model.
        options (`Mapping[str, Any]`): Options of `train` that the user set.

    Returns:
        `AdapterArguments`: The complete settings.

    Raises:
        UserError: An option differs from the checkpoint, or needs a language model where there is none.
    """
    stored, kind = read_adapters(arguments), model_type(arguments)
    if kind in WITHOUT_LANGUAGE_MODEL:
        refuse_language_options(options)
    if stored is not None:
        refuse = refuse_other_encoder_adapters if kind in WITHOUT_LANGUAGE_MODEL else refuse_other_adapters
        refuse(options, stored, arguments.model)
        options = {**{name: value for name, value in stored.items() if value is not None}, **options}
    adapters: AdapterArguments = build_options((AdapterArguments,), options, "train")[0]
    idle = sorted(options.keys() & set(LORA_FIELDS))
    if idle and not adapters.has_lora and not options.keys() & {"language_model", "tower"}:
        raise UserError(f"{idle[0]}: there is no LoRA: set language_model or tower to lora, or leave it out")
    return adapters


def model_commit(arguments: ModelArguments) -> str | None:
    """Returns the commit of a model on the Hub, as a branch name does not pin one; None for a folder."""
    if os.path.isdir(arguments.model):
        return None
    with loading_errors(arguments.model):
        return extract_commit_hash(cached_file(arguments.model, "config.json", revision=arguments.revision), None)


def refuse_pooling(fields: Mapping[str, Any]) -> None:
    """Raises UserError for the pooling of an encoder among the fields of a multimodal LLM."""
    if "pooling" in fields:
        raise UserError("pooling: only for an encoder without a language model: leave it out")


def load_config(arguments: ModelArguments, fields: dict[str, Any]) -> MllmReIDConfig | MllmReIDVisionConfig:
    """Loads the configuration that `load_encoder` builds a model from, without weights.

    Args:
        arguments (`ModelArguments`): Name or folder of the model.
        fields (`dict[str, Any]`): Configuration fields to replace.

    Returns:
        `MllmReIDConfig` or `MllmReIDVisionConfig`

    Raises:
        UserError: As in `load_encoder`.
    """
    revision, kind = revision_option(arguments), model_type(arguments)
    with loading_errors(arguments.model):
        if kind == ENCODER:
            return encoder_config(MllmReIDVisionConfig, arguments.model, revision, **fields)  # type: ignore[no-any-return]
        if kind == MllmReIDVisionConfig.model_type:
            stored = read_config(MllmReIDVisionConfig, arguments.model, revision)
            return MllmReIDVisionConfig.from_dict({**stored.to_dict(), **fields})
        refuse_pooling(fields)
        if kind in FAMILIES:
            return MllmReIDConfig(mllm_config=native_config(arguments.model, revision), **fields)
        return changed_config(read_config(MllmReIDConfig, arguments.model, revision), fields)


def load_encoder(
    arguments: ModelArguments,
    fields: dict[str, Any] | None = None,
    adapters: AdapterArguments | None = None,
    device: torch.device | None = None,
) -> tuple[ImageEncoder, ImageEncoderProcessor]:
    """Loads a model that embeds images: any form of `load_model`, a vision form, or a new one around an encoder.

    Args:
        arguments (`ModelArguments`): Name or folder of the model.
        fields (`dict[str, Any]`, *optional*): Configuration fields to replace.
        adapters (`AdapterArguments`, *optional*): For training: what is trained, and the format of frozen weights.
        device (`torch.device`, *optional*): As in `load_model`.

    Returns:
        `tuple[ImageEncoder, ImageEncoderProcessor]`

    Raises:
        UserError: As in `load_model`.
    """
    kind = model_type(arguments)
    if kind not in WITHOUT_LANGUAGE_MODEL:
        return load_model(arguments, fields, adapters, device)
    name, revision, fields = arguments.model, revision_option(arguments), dict(fields or {})
    dtype = arguments.torch_dtype
    if adapters is not None and (stored := read_adapters(arguments)) is not None:
        refuse_other_encoder_adapters(encoder_settings(adapters), stored, name)
    with loading_errors(name):
        if kind == ENCODER:
            size = {side: fields[side] for side in ("height", "width") if side in fields}
            processor = MllmReIDVisionProcessor.from_encoder_pretrained(name, **size, **revision)
            model = MllmReIDVisionModel.from_encoder_pretrained(name, dtype=dtype, **revision, **fields)
        else:
            _refuse_other_pooling(read_config(MllmReIDVisionConfig, name, revision), fields)
            processor = MllmReIDVisionProcessor.from_pretrained(name, trust_remote_code=False, **revision)
            options = {**revision, "dtype": dtype, "trust_remote_code": False, **fields}
            model = MllmReIDVisionModel.from_pretrained(name, **options)
            processor.image_processor.size = {"height": model.config.height, "width": model.config.width}
    if adapters is not None:
        prepare_encoder(model, adapters)
    return model, processor


def _refuse_other_pooling(stored: MllmReIDVisionConfig, fields: Mapping[str, Any]) -> None:
    """Raises ValueError for another pooling than that which a checkpoint's head was trained with."""
    if fields.get("pooling", stored.pooling) != stored.pooling:
        raise ValueError(f"pooling is {fields['pooling']}: its head was trained with {stored.pooling}: leave it out")


def load_ready_encoder(arguments: ModelArguments, fields: dict[str, Any]) -> tuple[ImageEncoder, ImageEncoderProcessor]:
    """Loads a model as `load_encoder` does to the device of this process, and checks that it embeds a crop."""
    model, processor = load_encoder(arguments, fields)
    to_device(model)
    use_fast_layout(model, this_process().device)
    check_runs(model, arguments.model)
    return model, processor


@torch.inference_mode()
def check_runs(model: ImageEncoder, name: str) -> None:
    """Raises UserError if a model cannot embed a black crop: some numbers in config.json are used only then."""
    config: Any = model.config
    pixels = torch.zeros(1, 3, config.height, config.width)
    with loading_errors(name, "cannot embed a crop", "its config.json is not that of its weights: get it again"):
        model.eval().encode_images(pixels)


def load_text_model(model_class: Any, arguments: ModelArguments) -> Any:
    """Loads a native model that generates texts, from safetensors and without custom code.

    Args:
        model_class (`type`): Class or auto class of transformers.
        arguments (`ModelArguments`): Name or folder of the model, revision and dtype.

    Returns:
        `PreTrainedModel`: The model with all its weights.

    Raises:
        UserError: The name cannot be loaded, or a weight is missing.
    """
    name, revision = arguments.model, revision_option(arguments)
    refuse_single_file(name)
    options = {**revision, "dtype": arguments.torch_dtype, "trust_remote_code": False}
    with loading_errors(name, "not loadable as an image-text-to-text model"):
        stored = read_config(AutoConfig, name, revision, trust_remote_code=False)
        # Weights that the class does not have belong to another class, such as a head for training.
        return load_whole(model_class.from_pretrained, name, revision, options, stored=stored, left=[""])[0]


def load_native_processor(arguments: ModelArguments) -> MllmReIDProcessor:
    """Loads the processor of a native multimodal LLM. Raises UserError for a name that cannot be loaded."""
    with loading_errors(arguments.model):
        return MllmReIDProcessor.from_mllm_pretrained(arguments.model, revision=arguments.revision)


def to_device(model: nn.Module) -> None:
    """Moves a model to the GPU of this process, if there is one. Warns of bfloat16 on a CPU that is slow in it."""
    device = this_process().device
    model.to(device)
    if any(parameter.dtype == torch.bfloat16 for parameter in model.parameters()):
        warn_slow_bfloat16(device, "dtype float32")
