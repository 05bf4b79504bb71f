"""Configurations of one published model of each family, by the sizes in its config.json, and a small copy of each.

Checked on 2026-11-28 against stored pages of the Hub, without a download. The parameters of each configuration are the
size of the weights in the file listing, two bytes each:

- Qwen/Qwen3-VL-2B-Instruct: 4.26 GB; lkhl/VideoLLaMA3-2B-Image-HF: 3.92 GB; OpenGVLab/InternVL3-2B-hf: 4.18 GB;
- Qwen/Qwen2.5-VL-3B-Instruct: 3.98 + 3.53 GB; HuggingFaceTB/SmolVLM-500M-Instruct: 1.02 GB;
- llava-hf/llava-onevision-qwen2-7b-ov-chat-hf, of the same shape: 4.91 + 4.99 + 4.93 + 1.23 GB;
- HuggingFaceTB/SmolVLM-Instruct, of the same shape as SmolVLM2-2.2B: 4.49 GB.

The sizes of google/gemma-3-4b-it equal a printed copy of a config.json of its shape. Those of the language model of
SmolVLM-500M equal vidore/ColSmolVLM-Instruct-500M-base, those of Qwen3-VL-2B's tower equal Qwen/Qwen3-VL-4B-Instruct.
For LLaVA-1.5-7B and Qwen3-VL-8B no page with sizes was found.
"""

import copy
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

_CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_SO400M = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def _text(
    kind: str, hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int, **more: Any
) -> dict[str, Any]:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocab}
    return {"model_type": kind, **sizes, "num_attention_heads": heads, "num_key_value_heads": kv, **more}


def _qwen(
    kind: str, text: dict[str, Any], sections: list[int], vision: dict[str, Any], *, tied: bool
) -> dict[str, Any]:
    rope = {"rope_type": "default", "mrope_section": sections, "rope_theta": 1e6}
    if kind == "qwen3_vl":
        rope |= {"mrope_interleaved": True, "rope_theta": 5e6}
    vision = {"model_type": f"{kind}_vision", "num_heads": 16, "out_hidden_size": text["hidden_size"], **vision}
    tokens = {"image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652}
    return {
        "model_type": kind,
        "text_config": {**text, "rope_parameters": rope, "tie_word_embeddings": tied},
        "vision_config": vision,
        "tie_word_embeddings": tied,
        **tokens,
    }


# By the model's name on the Hub.
PUBLISHED: dict[str, dict[str, Any]] = {
    "llava-hf/llava-1.5-7b-hf": {
        "model_type": "llava",
        "text_config": _text("llama", 4096, 11008, 32, 32, 32, 32064),
        "vision_config": {"model_type": "clip_vision_model", **_CLIP_L, "image_size": 336, "patch_size": 14},
        "image_token_index": 32000,
    },
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": {
        "model_type": "llava_onevision",
        "text_config": _text("qwen2", 3584, 18944, 28, 28, 4, 152128),
        "vision_config": {
            "model_type": "siglip_vision_model",
            **{**_SO400M, "num_hidden_layers": 26},
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "image_token_index": 151646,
    },
    "HuggingFaceTB/SmolVLM-500M-Instruct": {
        "model_type": "idefics3",
        "text_config": _text("llama", 960, 2560, 32, 15, 5, 49280),
        "vision_config": {"model_type": "idefics3_vision", **_BASE, "image_size": 512, "patch_size": 16},
        "scale_factor": 4,
        "image_token_id": 49190,
    },
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": {
        "model_type": "smolvlm",
        "text_config": _text("llama", 2048, 8192, 24, 32, 32, 49280),
        "vision_config": {"model_type": "smolvlm_vision", **_SO400M, "image_size": 384, "patch_size": 14},
        "scale_factor": 3,
        "image_token_id": 49190,
    },
    "OpenGVLab/InternVL3-2B-hf": {
        "model_type": "internvl",
        "text_config": _text("qwen2", 1536, 8960, 28, 12, 2, 151674, tie_word_embeddings=False),
        "vision_config": {"model_type": "internvl_vision", **_CLIP_L, "image_size": [448, 448], "patch_size": [14, 14]},
        "image_token_id": 151667,
        "tie_word_embeddings": False,
    },
    "lkhl/VideoLLaMA3-2B-Image-HF": {
        "model_type": "video_llama_3",
        "text_config": _text("qwen2", 1536, 8960, 28, 12, 2, 151936, tie_word_embeddings=True),
        "vision_config": {"model_type": "video_llama_3_vision", **_SO400M, "patch_size": 14},
        "image_token_id": 151655,
        "tie_word_embeddings": True,
    },
    "google/gemma-3-4b-it": {
        "model_type": "gemma3",
        "text_config": _text("gemma3_text", 2560, 10240, 34, 8, 4, 262208, head_dim=256, sliding_window=1024),
        "vision_config": {
            "model_type": "siglip_vision_model",
            **_SO400M,
            "image_size": 896,
            "patch_size": 14,
            "vision_use_head": False,
        },
        "mm_tokens_per_image": 256,
        "image_token_index": 262144,
    },
    "Qwen/Qwen2.5-VL-3B-Instruct": _qwen(
        "qwen2_5_vl",
        _text("qwen2_5_vl_text", 2048, 11008, 36, 16, 2, 151936),
        [16, 24, 24],
        {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "patch_size": 14},
        tied=True,
    ),
    "Qwen/Qwen3-VL-2B-Instruct": _qwen(
        "qwen3_vl",
        _text("qwen3_vl_text", 2048, 6144, 28, 16, 8, 151936, head_dim=128),
        [24, 20, 20],
        {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]},
        tied=True,
    ),
    "Qwen/Qwen3-VL-8B-Instruct": _qwen(
        "qwen3_vl",
        _text("qwen3_vl_text", 4096, 12288, 36, 32, 8, 151936, head_dim=128),
        [24, 20, 20],
        {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]},
        tied=False,
    ),
}


def config_of(name: str, *, small: bool = False) -> PreTrainedConfig:
    """Returns the configuration of a published model, or a copy with few layers and two heads of the same size."""
    fields = copy.deepcopy(PUBLISHED[name])
    if small:
        text, vision = fields["text_config"], fields["vision_config"]
        head = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
        text |= {"hidden_size": 2 * head, "intermediate_size": 4 * head, "num_hidden_layers": 4, "vocab_size": 512}
        text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
        text |= {"pad_token_id": 0}
        heads = "num_heads" if "depth" in vision else "num_attention_heads"
        width = vision["hidden_size"] // vision[heads] * 2
        vision |= {"hidden_size": width, "intermediate_size": 2 * width, heads: 2}
        vision["depth" if "depth" in vision else "num_hidden_layers"] = 4
        changed = {"out_hidden_size": 2 * head, "deepstack_visual_indexes": [0, 1], "fullatt_block_indexes": [1, 3]}
        vision |= {key: value for key, value in changed.items() if key in vision}
        for key in ("image_token_id", "image_token_index", "video_token_id", "vision_start_token_id"):
            if key in fields:
                fields[key] = 500
    return AutoConfig.for_model(fields.pop("model_type"), **fields)
