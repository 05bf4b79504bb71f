"""Writes tiny random vision encoders and language models to disk, for `compose`."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    CLIPImageProcessor,
    PreTrainedTokenizerFast,
)

from modeling_mllmreid.synthetic.people.captions import sample_descriptions

SHAPE: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
VISION = {**SHAPE, "image_size": 32, "patch_size": 8, "num_hidden_layers": 3}
TEXT = {**SHAPE, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
CHAT = (
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
SEED = 7


def write_tower(folder: Path, kind: str, **fields: Any) -> torch.nn.Module:
    """Writes a vision encoder of a model type with its image processor; "clip" and "siglip" are dual encoders."""
    torch.manual_seed(SEED)
    if kind in ("clip", "siglip"):
        text = {**SHAPE, "num_hidden_layers": 1, "vocab_size": 20, "projection_size": 16, "max_position_embeddings": 8}
        config = AutoConfig.for_model(kind, vision_config={**VISION, **fields}, text_config=text, projection_dim=16)
        model = AutoModel.from_config(config)
    else:
        config = AutoConfig.for_model(kind, **{**VISION, **fields})
        # Published ViTs are classifiers, without a pooler.
        make = AutoModelForImageClassification if kind == "vit" else AutoModel
        model = make.from_config(config)
    model.eval().save_pretrained(folder)
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(folder)
    return model


def write_language_model(folder: Path, kind: str, **fields: Any) -> torch.nn.Module:
    """Writes a causal language model of a model type with a tokenizer of the rendered captions' words."""
    words = sorted({word for texts in sample_descriptions(300, seed=0) for text in texts for word in text.split()})
    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", "user", "assistant", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, "<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=core, chat_template=CHAT, **names).save_pretrained(folder)
    torch.manual_seed(SEED)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = AutoConfig.for_model(kind, **{**TEXT, "vocab_size": len(vocabulary), **ids, **fields})
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    return model
