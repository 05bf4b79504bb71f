"""A tiny random model of each family, its configuration, and the arguments of its own forward pass."""

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from modeling_mllmreid.model import MllmReIDModel

IMAGE_TOKEN, PREFIX = 100, [1, 5]
_TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_TOWER = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "image_size": 56,
    "patch_size": 14,
}
_QWEN_TOWER = {"depth": 3, "hidden_size": 24, "intermediate_size": 48, "num_heads": 3, "out_hidden_size": 32}
_QWEN_TOKENS = {"video_token_id": 101, "vision_start_token_id": 102, "vision_end_token_id": 103}


def _llava(tower: dict, **fields) -> dict:
    text = {"model_type": "llama", **_TEXT}
    return {"model_type": "llava", "text_config": text, "vision_config": tower, "image_token_index": 100, **fields}


def _connector(kind: str) -> dict:
    tower = {"model_type": f"{kind}_vision", **_TOWER}
    text = {"model_type": "llama", **_TEXT}
    return {"model_type": kind, "text_config": text, "vision_config": tower, "scale_factor": 2, "image_token_id": 100}


def _rope(sections: list[int], **fields) -> dict:
    return {"rope_parameters": {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e4, **fields}}


_SIGLIP = {"model_type": "siglip_vision_model", "vision_use_head": False, **_TOWER}
_DINOV2 = {"model_type": "dinov2", "mlp_ratio": 2, **_TOWER}
CONFIGS: dict[str, dict] = {
    "LLaVA, CLIP": _llava({"model_type": "clip_vision_model", **_TOWER}),
    "LLaVA, SigLIP": _llava(_SIGLIP, vision_feature_select_strategy="full", vision_feature_layer=-1),
    "LLaVA, DINOv2": _llava(_DINOV2),
    "LLaVA-OneVision": {
        **_llava(_SIGLIP, vision_feature_select_strategy="full", vision_feature_layer=-1),
        "model_type": "llava_onevision",
        "text_config": {"model_type": "qwen2", **_TEXT},
        "video_token_index": 101,
        "image_grid_pinpoints": [[56, 56]],
    },
    "SmolVLM": _connector("smolvlm"),
    "Idefics3": _connector("idefics3"),
    "InternVL": {
        "model_type": "internvl",
        "text_config": {"model_type": "qwen2", **_TEXT},
        "vision_config": {"model_type": "internvl_vision", **_TOWER, "image_size": [56, 56], "patch_size": [14, 14]},
        "image_token_id": 100,
    },
    "VideoLLaMA 3": {
        "model_type": "video_llama_3",
        "text_config": {"model_type": "qwen2", **_TEXT},
        "vision_config": {
            "model_type": "video_llama_3_vision",
            **{name: value for name, value in _TOWER.items() if name != "image_size"},
            "num_attention_heads": 2,
        },
        "image_token_id": 100,
        "video_token_id": 101,
    },
    "Gemma 3": {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            **_TEXT,
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
        "vision_config": _SIGLIP,
        "image_token_index": 100,
        "mm_tokens_per_image": 4,
    },
    "Qwen2.5-VL": {
        "model_type": "qwen2_5_vl",
        "text_config": {"model_type": "qwen2_5_vl_text", **_TEXT, **_rope([1, 1, 2])},
        "vision_config": {
            "model_type": "qwen2_5_vl_vision",
            **_QWEN_TOWER,
            "patch_size": 14,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        "image_token_id": 100,
        **_QWEN_TOKENS,
    },
    "Qwen3-VL": {
        "model_type": "qwen3_vl",
        "text_config": {
            "model_type": "qwen3_vl_text",
            **_TEXT,
            "head_dim": 8,
            **_rope([2, 1, 1], mrope_interleaved=True),
        },
        "vision_config": {
            "model_type": "qwen3_vl_vision",
            **_QWEN_TOWER,
            "patch_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
        "image_token_id": 100,
        **_QWEN_TOKENS,
    },
}


def build_native(family: str) -> PreTrainedModel:
    """A random model with weights of a size that makes every wrong way visible."""
    fields = dict(CONFIGS[family])
    torch.manual_seed(0)
    mllm = AutoModelForImageTextToText.from_config(AutoConfig.for_model(fields.pop("model_type"), **fields)).eval()
    with torch.no_grad():
        for parameter in mllm.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2)
    return mllm


def build_reid(family: str, *, height: int | None = None, width: int | None = None, **fields) -> MllmReIDModel:
    """A ReID model around it, by default for crops of the family's size, with four identities."""
    size = {} if height is None else {"height": height, "width": width}
    fields = {"num_identities": 4, "image_prefix_ids": PREFIX, **size, **fields}
    torch.manual_seed(0)
    return MllmReIDModel.from_mllm(build_native(family), **fields).eval()


def prompts(model: MllmReIDModel, batch: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Ids of image prompts with targets of unequal lengths, attention mask and labels, each (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    start = [*PREFIX, *[IMAGE_TOKEN] * model.config.num_image_tokens, 7, 8]
    target = torch.randint(10, 90, (batch, 5), generator=generator)
    ids = torch.cat([torch.tensor([start] * batch), target], dim=1)
    mask, labels = torch.ones_like(ids), ids.clone()
    labels[:, : len(start)] = -100
    for row in range(1, batch, 2):
        mask[row, -2:], labels[row, -2:], ids[row, -2:] = 0, -100, 0
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def stock_inputs(model: MllmReIDModel, pixels: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """The image arguments of the family's own forward pass, as its own processor makes them."""
    kind, (height, width) = model.config.mllm_config.model_type, pixels.shape[2:]
    is_image = ids == IMAGE_TOKEN
    if kind in ("smolvlm", "idefics3"):
        return {"pixel_values": pixels[:, None]}
    if kind == "llava_onevision":  # as several images: one view of each
        sizes = torch.tensor([[height, width]] * len(pixels))
        return {"pixel_values": pixels[:, None], "image_sizes": sizes, "batch_num_images": torch.tensor([len(pixels)])}
    if kind == "video_llama_3":
        tower, ones = model.backbone.tower, torch.ones(len(pixels), dtype=torch.long)
        grid = torch.tensor([[1, *tower.grid(height, width)]] * len(pixels))
        return {"pixel_values": tower.patches(pixels), "image_grid_thw": grid, "image_merge_sizes": ones}
    if kind == "gemma3":
        return {"pixel_values": pixels, "token_type_ids": is_image.long()}
    if kind.startswith("qwen"):
        tower = model.backbone.tower
        grid = torch.tensor([[1, *tower.grid(height, width)]] * len(pixels))
        return {"pixel_values": tower.patches(pixels), "image_grid_thw": grid, "mm_token_type_ids": is_image.int()}
    return {"pixel_values": pixels}
