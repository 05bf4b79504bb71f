"""Loads the multimodal LLM of a model, native or from a full checkpoint, and identifies it by a few of its weights."""

import copy
import os
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel

from .backbones import backbone_of
from .weights import CONFIG, Hub, Source, load_whole, native_config, read_config, read_fields

# Fields of the language model's and the tower's configuration that must agree with the checkpoint's.
SIZES = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size", "patch_size")


def plain_config(mllm: PreTrainedModel) -> PreTrainedConfig:
    """Returns a copy of a multimodal LLM's configuration without its quantisation: saved weights are not quantised."""
    config = copy.deepcopy(mllm.config)
    if getattr(config, "quantization_config", None) is not None:
        del config.quantization_config
    return config


def weights_fingerprint(mllm: nn.Module) -> list[float]:
    """Returns a few frozen weights that identify a backbone in any number format.

    They are eight token embeddings and eight weights of the last norm, at equal steps. A thin checkpoint never trains
    either.
    """
    language_model = mllm.get_submodule(backbone_of(mllm.config).language_path)
    fingerprint = []
    for weight in (mllm.get_input_embeddings().weight, language_model.norm.weight):
        flat = weight.detach().flatten()
        indices = torch.linspace(0, flat.numel() - 1, 8, device=flat.device, dtype=torch.float64).round().long()
        fingerprint += [float(f"{value:.6g}") for value in flat[indices].float().tolist()]
    return fingerprint


def load_native(name_or_path: Source, hub: Hub, options: dict[str, Any]) -> PreTrainedModel:
    """Loads a native multimodal LLM with every weight from its checkpoint; other weights in its files are ignored.

    Args:
        name_or_path (`str` or `os.PathLike`):
            Its folder or its name on the Hub.
        hub (`dict`):
            Those of `options` that locate files (`HUB`).
        options (`dict`):
            All arguments of `from_pretrained`.

    Raises:
        ValueError: for another kind of model, and as `load_whole`.
    """
    hub = {key: value for key, value in hub.items() if value is not None}
    stored = native_config(name_or_path, hub)
    load = AutoModelForImageTextToText.from_pretrained
    options = {**options, "trust_remote_code": False}
    return load_whole(load, name_or_path, hub, options, stored=stored, left=[""])[0]


def load_backbone(model_class: Any, config: Any, options: dict[str, Any], checkpoint: Source) -> PreTrainedModel:
    """Loads the multimodal LLM that a thin checkpoint was trained on: a native one, or that of a full checkpoint.

    Args:
        model_class (`type`):
            [`MllmReIDModel`], which loads a full checkpoint.
        config ([`MllmReIDConfig`]):
            Configuration of the thin checkpoint.
        options (`dict`):
            Arguments of `from_pretrained`.
        checkpoint (`str` or `os.PathLike`):
            The thin checkpoint, for errors and for its place.

    Raises:
        OSError: if the backbone is not found.
        ValueError: if the backbone has another size or other weights.
    """
    name, revision = config.backbone, config.backbone_revision
    where = f"{checkpoint}: its backbone {name}" + (f" at {revision}" if revision else "")
    hub: Hub = {key: options[key] for key in ("cache_dir", "local_files_only", "token") if key in options}
    hub = hub if revision is None else {**hub, "revision": revision}
    if os.path.isabs(name) and not os.path.isdir(checkpoint):
        raise ValueError(f"{where} is a folder, which a checkpoint on the Hub cannot name: get a full checkpoint")
    try:
        ours = (read_fields(name, CONFIG, hub, required=True) or {}).get("model_type") == config.model_type
        stored = read_config(model_class.config_class, name, hub) if ours else native_config(name, hub)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OSError(f"{where} cannot be found ({reason}): put it there, or get a full checkpoint") from error
    if ours and stored.backbone is not None:
        raise ValueError(f"{where} is a thin checkpoint itself, which names another backbone: get a full checkpoint")
    _check_same_sizes(stored.mllm_config if ours else stored, config.mllm_config, where)
    options = {**options, **hub}
    mllm: PreTrainedModel = (
        model_class.from_pretrained(name, **options).mllm if ours else load_native(name, hub, options)
    )
    expected, loaded = torch.tensor(config.backbone_fingerprint or []), torch.tensor(weights_fingerprint(mllm))
    if expected.shape != loaded.shape or not torch.allclose(loaded, expected, rtol=0.01, atol=1e-6):
        raise ValueError(
            f"{where} has other weights than the backbone of the training: give that backbone, in its revision"
        )
    return mllm


def _check_same_sizes(stored: Any, expected: Any, where: str) -> None:
    """Raises ValueError if two configurations of a multimodal LLM differ in a size."""
    for module in ("text_config", "vision_config"):
        for field in SIZES:
            size, expected_size = (getattr(getattr(config, module, None), field, None) for config in (stored, expected))
            if size != expected_size:
                raise ValueError(
                    f"{where} is of another size: {module}.{field} is {size}, not {expected_size}: give the right one"
                )
