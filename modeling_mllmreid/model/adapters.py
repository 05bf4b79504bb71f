"""LoRA inside the wrapped LLaVA: injected, stored under PEFT's own names, loaded strictly, merged."""

import json
import os

import torch
from torch import Tensor, nn

ADAPTER = "adapter"
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
# As PEFT names them around a LLaVA: so the folder is a LoRA of the native LLaVA for PEFT too.
PREFIX = "base_model.model."


def inject_adapter(mllm: nn.Module, settings: dict) -> None:
    """Adds LoRA layers to the modules that `settings["target_modules"]` (a regular expression) matches.

    settings: fields of `peft.LoraConfig`. The model stays of its class; everything else keeps its `requires_grad`. LoRA
    weights are float32, whatever the frozen ones are: in bfloat16 small updates are lost.
    Source: Hu et al. 2021, "LoRA". Raises ImportError without peft, ValueError where nothing matches.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ImportError("LoRA needs peft: pip install peft") from None
    trained = {name for name, parameter in mllm.named_parameters() if parameter.requires_grad}
    inject_adapter_in_model(LoraConfig(**settings), mllm, adapter_name="default")
    for name, parameter in mllm.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
        else:
            parameter.requires_grad_(name.replace(".base_layer.", ".") in trained)


def adapter_settings(mllm: nn.Module) -> dict | None:
    """The fields of `LoraConfig` of an injected adapter, or None."""
    configs = getattr(mllm, "peft_config", None)
    return configs["default"].to_dict() if configs else None


def adapter_weights(mllm: nn.Module) -> dict[str, Tensor]:
    """The LoRA weights under PEFT's names, as references."""
    return adapter_of({f"mllm.{name}": parameter.data for name, parameter in mllm.named_parameters()})


def adapter_of(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """The LoRA weights of the whole model's state dict under PEFT's names, as references."""
    lora = {name: weight for name, weight in state_dict.items() if ".lora_" in name}
    return {PREFIX + name.removeprefix("mllm.").replace(".default.", "."): weight for name, weight in lora.items()}


def save_adapter(
    mllm: nn.Module, folder: str | os.PathLike, weights: dict[str, Tensor], backbone: str, revision: str | None
) -> None:
    """Writes the adapter as PEFT does, with the backbone that it belongs to. weights: under PEFT's names."""
    from safetensors.torch import save_file

    os.makedirs(folder, exist_ok=True)
    weights = {name: weight.detach().cpu().contiguous() for name, weight in weights.items()}
    save_file(weights, os.path.join(folder, WEIGHTS), metadata={"format": "pt"})
    settings = adapter_settings(mllm) | {"base_model_name_or_path": backbone, "revision": revision}
    # PEFT holds sets and enums, which JSON does not.
    plain = json.dumps(settings, default=lambda value: sorted(value) if isinstance(value, set) else str(value.value))
    with open(os.path.join(folder, SETTINGS), "w", encoding="utf-8") as file:
        file.write(json.dumps(json.loads(plain), indent=2, sort_keys=True) + "\n")


def merge_adapter(mllm: nn.Module) -> None:
    """Adds the LoRA's product to the weights that it sits on and removes it; nothing where there is none.

    Raises ValueError where those weights are quantised: they cannot hold the sum.
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
