"""Tiny random vision encoders on disk, as transformers and timm save them."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, CLIPImageProcessor

_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_VIT = {**_SIZES, "image_size": 64, "patch_size": 16}
_DINO = {"hidden_size": 16, "mlp_ratio": 2, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 56}
_TEXT = {**_SIZES, "vocab_size": 50, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
_STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}

# Fields of each configuration by its `model_type`.
ENCODERS: dict[str, dict[str, Any]] = {
    "clip": {"text_config": {**_TEXT, "pad_token_id": 0}, "vision_config": _VIT},
    "siglip": {"text_config": {**_TEXT, "pad_token_id": 0}, "vision_config": _VIT},
    "siglip2": {
        "text_config": {**_TEXT, "pad_token_id": 0},
        "vision_config": {**_SIZES, "patch_size": 16, "num_patches": 16},
    },
    "dinov2": {**_DINO, "patch_size": 14},
    "dinov2_with_registers": {**_DINO, "patch_size": 14, "num_register_tokens": 4},
    "dinov3_vit": {**_VIT, "num_register_tokens": 4},
    "dinov3_convnext": {**_STAGES, "image_size": 64},
    "vit": _VIT,
    "deit": _VIT,
    "swin": {"image_size": 64, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    "convnext": _STAGES,
    "reid_resnet": {"width": 4, "blocks": [1, 1, 1, 1], "non_local": [0, 0, 0, 0], "ibn": True},
    "resnet": {**_STAGES, "embedding_size": 8, "layer_type": "basic"},
}
# States in front of the patches: class token, distillation token, registers; DINOv3's ConvNeXt has a pooled state.
PREFIX = {"clip": 1, "dinov2": 1, "dinov2_with_registers": 5, "dinov3_vit": 5, "vit": 1, "deit": 2}
PREFIX["dinov3_convnext"] = 1
# Sides of a square crop of 4 x 4 patches, or 2 x 2 positions of the last stage of four.
SQUARE = {"dinov2": 56, "dinov2_with_registers": 56}

TIMM = {
    "vit_tiny_patch16_224": {"depth": 2},
    "swin_tiny_patch4_window7_224": {"depths": [1, 1, 1, 1], "embed_dim": 24, "num_heads": [1, 2, 2, 2]},
    "resnet10t": {},
}


def write_encoder(folder: Path, kind: str, **fields: Any) -> Path:
    """Writes an encoder with random weights that no start sets to zero, and its image processor."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **{**ENCODERS[kind], **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    CLIPImageProcessor(image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3], resample=2).save_pretrained(folder)
    return folder


def has_timm() -> bool:
    """Whether timm is installed, which needs torchvision."""
    return find_spec("timm") is not None


def write_timm(folder: Path, architecture: str) -> Path:
    """Writes a model of timm as the Hub holds it, trained for 7 classes at 224 x 224."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    arguments = TIMM[architecture]
    model = timm.create_model(architecture, pretrained=False, num_classes=7, **arguments)
    pixels = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "interpolation": "bilinear"}
    trained = {**pixels, "input_size": [3, 224, 224]}
    fields = {"architecture": architecture, "num_classes": 7, "model_args": arguments, "pretrained_cfg": trained}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(fields))
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
