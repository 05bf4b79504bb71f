"""Writes a tiny random model of a family to disk as a native checkpoint: weights, image processor, chat tokenizer."""

import copy
from pathlib import Path

import torch
from chat_tokenizers import SPECIAL, chat_tokenizer
from families import CONFIGS
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    LlavaOnevisionImageProcessor,
    PreTrainedModel,
    Qwen2VLImageProcessor,
    SmolVLMImageProcessor,
    VideoLlama3ImageProcessor,
)

# Layout of the chat template, and the family's own image processor, with other pixel values than its defaults.
PROCESSORS = {
    "LLaVA, CLIP": ("llava", CLIPImageProcessor, {"image_mean": [0.1, 0.2, 0.3]}),
    "LLaVA, SigLIP": ("llava", CLIPImageProcessor, {"resample": 2}),
    "LLaVA, DINOv2": ("smollm", CLIPImageProcessor, {"image_std": [0.1, 0.2, 0.3]}),
    "LLaVA-OneVision": ("llava", LlavaOnevisionImageProcessor, {"image_mean": [0.5, 0.5, 0.5]}),
    "SmolVLM": ("smolvlm", SmolVLMImageProcessor, {}),
    "Idefics3": ("smolvlm", Idefics3ImageProcessor, {"resample": 0}),
    "InternVL": ("internvl", GotOcr2ImageProcessor, {"image_mean": [0.485, 0.456, 0.406]}),
    "VideoLLaMA 3": ("internvl", VideoLlama3ImageProcessor, {}),
    "Gemma 3": ("gemma", Gemma3ImageProcessor, {}),
    "Qwen2.5-VL": ("qwen", Qwen2VLImageProcessor, {}),
    "Qwen3-VL": ("qwen", Qwen2VLImageProcessor, {"patch_size": 16, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}),
}


def write_chat_model(folder: Path, family: str) -> PreTrainedModel:
    """Writes the checkpoint; returns the model."""
    layout, image_processor, settings = PROCESSORS[family]
    tokenizer = chat_tokenizer(layout)
    fields = copy.deepcopy(CONFIGS[family])
    (name,) = {"image_token_id", "image_token_index"} & fields.keys()
    fields[name] = tokenizer.convert_tokens_to_ids(SPECIAL[layout][0])
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    fields["text_config"] |= {"vocab_size": len(tokenizer) + 3, "pad_token_id": tokenizer.pad_token_id, **ids}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        mllm = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for parameter in mllm.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2, generator=torch.Generator().manual_seed(parameter.numel()))
    for part in (mllm, tokenizer, image_processor(**settings)):
        part.save_pretrained(folder)
    return mllm
