"""LoRA within the wrapped multimodal LLM, and 4-bit and 8-bit weights of its language model."""

import json
import math
import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.hub import cached_file

from .backbones import FAMILIES
from .weights import read_fields, readable

ADAPTER = "adapter"
# The name that PEFT gives an adapter within a model.
ADAPTER_NAME = "default"
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
# PEFT's prefix of names around a model: with it PEFT can load the folder as a LoRA of the native model.
PREFIX = "base_model.model."
MATRICES = (".lora_A.weight", ".lora_B.weight")
# Settings of PEFT that are more than plain LoRA, and would be ignored here.
UNKNOWN = ("alpha_pattern", "rank_pattern", "modules_to_save", "layer_replication", "use_dora", "lora_bias")


def inject_adapter(mllm: nn.Module, settings: dict[str, Any]) -> None:
    """Adds LoRA layers to a multimodal LLM in place.

    The class of the model and the `requires_grad` of its other weights stay. LoRA weights are float32 whatever the
    frozen weights are, since bfloat16 loses small updates.

    Args:
        mllm (`nn.Module`):
            The multimodal LLM.
        settings (`dict`):
            Fields of `peft.LoraConfig`. `target_modules` are full names or a regular expression that matches them.

    Raises:
        ImportError: without peft.
        ValueError: if no module matches.

    Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        raise ImportError(f"LoRA needs peft, which cannot be imported ({reason}): pip install -U peft") from error
    trained = {name for name, parameter in mllm.named_parameters() if parameter.requires_grad}
    inject_adapter_in_model(LoraConfig(**settings), mllm, adapter_name=ADAPTER_NAME)
    for name, parameter in mllm.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
        else:
            parameter.requires_grad_(name.replace(".base_layer.", ".") in trained)


def adapter_settings(mllm: nn.Module) -> dict[str, Any] | None:
    """Returns the fields of `LoraConfig` of an injected adapter, with full names of its modules, or None."""
    configs = getattr(mllm, "peft_config", None)
    if not configs:
        return None
    targets = [name for name, module in mllm.named_modules() if hasattr(module, "lora_A")]
    settings: dict[str, Any] = configs[ADAPTER_NAME].to_dict() | {"target_modules": targets}
    return settings


def adapter_weights(mllm: nn.Module) -> dict[str, Tensor]:
    """Returns the LoRA weights under PEFT's names, as references."""
    return adapter_from_state_dict({f"mllm.{name}": parameter.data for name, parameter in mllm.named_parameters()})


def adapter_from_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the LoRA weights of the whole model's state dict under PEFT's names, as references."""
    lora = {name: weight for name, weight in state_dict.items() if ".lora_" in name}
    return {PREFIX + name.removeprefix("mllm.").replace(".default.", "."): weight for name, weight in lora.items()}


def save_adapter(
    mllm: nn.Module, folder: str | os.PathLike[str], weights: dict[str, Tensor], backbone: str, revision: str | None
) -> None:
    """Writes an adapter's folder as PEFT does, with the backbone's name and commit. weights: under PEFT's names."""
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(weights, os.path.join(folder, WEIGHTS), metadata={"format": "pt"})
    settings = adapter_settings(mllm) | {"base_model_name_or_path": backbone, "revision": revision}
    # PEFT's settings hold sets and enums, which JSON does not have.
    plain = json.dumps(settings, default=lambda value: sorted(value) if isinstance(value, set) else str(value.value))
    with open(os.path.join(folder, SETTINGS), "w", encoding="utf-8") as file:
        file.write(json.dumps(json.loads(plain), indent=2, sort_keys=True) + "\n")


def read_adapter(
    name_or_path: str | os.PathLike[str], folder: str, hub: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Reads the adapter in a checkpoint's sub-folder.

    The modules are those in the settings file. If the file has a regular expression, they are those in the names of
    the weights: a regular expression of foreign origin may run for hours.

    Args:
        name_or_path (`str` or `os.PathLike`):
            The checkpoint's folder or its name on the Hub.
        folder (`str`):
            The sub-folder.
        hub (`dict`):
            Arguments of `from_pretrained` that locate files (`HUB`).

    Returns:
        `tuple[dict, dict[str, torch.Tensor]]`: the fields of `peft.LoraConfig`, and the weights under PEFT's names.

    Raises:
        OSError: if a file is missing.
        ValueError: for a setting that is not plain LoRA, and for a weight that is no matrix of a LoRA.
    """
    from safetensors.torch import load_file

    with readable(name_or_path, hub, [f"{folder}/adapter_model.bin"]):
        settings = read_fields(name_or_path, f"{folder}/{SETTINGS}", hub, required=True) or {}
        weights = load_file(cached_file(name_or_path, f"{folder}/{WEIGHTS}", **hub))
    where = f"{name_or_path}: {folder}/{SETTINGS}"
    fields = _plain_lora_fields(settings, where)
    modules = set()
    for name, weight in weights.items():
        module = next((name.removesuffix(end) for end in MATRICES if name.endswith(end)), None)
        if module is None or not name.startswith(PREFIX):
            raise ValueError(f"{name_or_path}: {folder}/{WEIGHTS}: {name[:200]} is no matrix of a LoRA: get it again")
        rank = weight.shape[0 if name.endswith(MATRICES[0]) else -1] if weight.ndim else 0
        if rank != fields["r"]:
            raise ValueError(f"{where}: r is {fields['r']} and the matrix {name[:200]} is {tuple(weight.shape)}")
        modules.add(module.removeprefix(PREFIX))
    targets = settings.get("target_modules")
    if not isinstance(targets, str):
        if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
            raise ValueError(f"{where}: target_modules is {repr(targets)[:60]}; it must be a list of names")
        modules = set(targets)
    return {**fields, "target_modules": sorted(modules)}, weights


def _plain_lora_fields(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Returns the fields of `LoraConfig` in a settings file. Raises ValueError for anything but plain LoRA."""
    fields = {
        "r": settings.get("r"),
        "lora_alpha": settings.get("lora_alpha"),
        "lora_dropout": settings.get("lora_dropout", 0.0),
        "use_rslora": settings.get("use_rslora", False),
        "bias": settings.get("bias", "none"),
    }
    rank, alpha, dropout = fields["r"], fields["lora_alpha"], fields["lora_dropout"]
    numbers = (int, float)
    checks = {
        "r": (type(rank) is int and rank > 0, "a whole number, 1 or more"),
        "lora_alpha": (type(alpha) in numbers and math.isfinite(alpha), "a finite number"),
        "lora_dropout": (type(dropout) in numbers and 0 <= dropout < 1, "from 0 to below 1"),
        "use_rslora": (isinstance(fields["use_rslora"], bool), "true or false"),
        "bias": (fields["bias"] == "none", "'none'"),
    }
    for name, (fits, allowed) in checks.items():
        if not fits:
            raise ValueError(f"{where}: {name} is {repr(fields[name])[:60]}; it must be {allowed}")
    for name in UNKNOWN:
        if settings.get(name):
            raise ValueError(f"{where}: {name} is {repr(settings[name])[:60]}; only plain LoRA is loaded")
    if settings.get("peft_type", "LORA") != "LORA":
        raise ValueError(f"{where}: peft_type is {repr(settings['peft_type'])[:60]}; only plain LoRA is loaded")
    return fields


def merge_adapter(mllm: nn.Module) -> None:
    """Adds the LoRA's product to the weights in place and removes the LoRA; a model without a LoRA stays as it is.

    Raises:
        ValueError: if the weights are quantised and cannot hold the sum.
    """
    layers = [(name, module) for name, module in mllm.named_modules() if hasattr(module, "lora_A")]
    for name, layer in layers:
        if not layer.get_base_layer().weight.is_floating_point():
            raise ValueError(f"{name} is quantised and cannot take the LoRA in: load the model without quantisation")
    with torch.no_grad():
        for name, layer in layers:
            layer.merge()
            mllm.set_submodule(name, layer.get_base_layer())
    if layers:
        del mllm.peft_config


# Vision tower, projector, output layer and heads of every family keep their exact weights. A pattern is matched from
# the start of a module's full name or as its end, so these work for a native model alone and within our model.
_OTHER_PATHS = {path for family in FAMILIES.values() for path in (family.tower_path, *family.projector_paths)}
NOT_QUANTIZED = [*sorted(f".*{path.rpartition('.')[2]}" for path in _OTHER_PATHS), ".*lm_head", "reid_head"]


def quantized_class(module: nn.Module) -> str | None:
    """Returns "Linear4bit" or "Linear8bitLt" for a layer of bitsandbytes, else None.

    The name alone is not enough, since peft's wrappers have the same names.
    """
    layer = type(module)
    known = layer.__module__.startswith("bitsandbytes.") and layer.__name__ in ("Linear4bit", "Linear8bitLt")
    return layer.__name__ if known else None


def quantized_as(model: nn.Module) -> str | None:
    """Returns "4bit" or "8bit" for a model with such a language model, else None."""
    layers = {quantized_class(module) for module in model.modules()}
    return "4bit" if "Linear4bit" in layers else "8bit" if "Linear8bitLt" in layers else None


def for_language_model(quantization_config: Any) -> Any:
    """Limits a `BitsAndBytesConfig` (or its fields) to the language model if it has no exceptions of its own.

    Other quantisation configurations are returned unchanged.

    Raises:
        ImportError: if bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if isinstance(quantization_config, dict):
        quantization_config = BitsAndBytesConfig(**quantization_config)
    if not isinstance(quantization_config, BitsAndBytesConfig):
        return quantization_config
    if not is_bitsandbytes_available():
        raise ImportError("4-bit and 8-bit weights need bitsandbytes: pip install bitsandbytes, or leave them out")
    if quantization_config.llm_int8_skip_modules is None:
        quantization_config.llm_int8_skip_modules = list(NOT_QUANTIZED)
    return quantization_config


def check_quantized(model: Any) -> None:
    """Checks that the language model's linear layers are quantised, and no other layer.

    It also turns off bitsandbytes' repacking of 4-bit weights on processors with AVX512-BF16. After a forward pass
    without gradients, repacked weights give wrong gradients without an error.

    Raises:
        ValueError: with the name of the first wrong module.
    """
    names = {name for name, module in model.named_modules() if quantized_class(module)}
    language = f"mllm.{model.backbone.language_path}."
    outside = sorted(name for name in names if not name.startswith(language))
    missed = [
        name
        for name, module in model.named_modules()
        if name.startswith(language) and type(module) is nn.Linear and ".lora_" not in name
    ]
    if outside or missed or not names:
        wrong = f"{outside[0]} is quantised" if outside else f"{(missed or ['the language model'])[0]} is not quantised"
        raise ValueError(f"{wrong}: leave llm_int8_skip_modules out, or give {NOT_QUANTIZED}")
    for module in model.modules():
        if quantized_class(module) == "Linear4bit":
            module.support_avx512bf16_for_cpu = False
