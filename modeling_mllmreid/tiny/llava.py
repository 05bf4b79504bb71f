"""A LLaVA small enough for two processor cores, built from scratch with a tokenizer of the words that it will need."""

from collections.abc import Iterable
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from ..model import MllmReIDProcessor

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A lower-case word-level tokenizer whose vocabulary is the words of `texts`, in sorted order."""
    splitter, lower = pre_tokenizers.Whitespace(), normalizers.Lowercase()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(lower.normalize_str(text))}
    vocabulary = {word: index for index, word in enumerate(SPECIAL_TOKENS + sorted(words - set(SPECIAL_TOKENS)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = lower, splitter
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=["<image>"], **names)


def build_processor(texts: Iterable[str], *, height: int, width: int, patch_size: int) -> MllmReIDProcessor:
    """The processor of a tiny LLaVA. `texts`: what its vocabulary is made of; the prompt's own words are added."""
    image_processor = CLIPImageProcessor(size={"height": height, "width": width}, do_center_crop=False)
    template = "user: continue the following text. assistant:"
    return MllmReIDProcessor(image_processor, build_tokenizer([template, *texts]), patch_size=patch_size)


def build_tiny_llava(
    processor: MllmReIDProcessor, *, hidden_size: int, tower_layers: int, lm_layers: int, seed: int
) -> LlavaForConditionalGeneration:
    """A randomly initialised LLaVA with `processor`'s vocabulary and patch size; it reads the tower's last layer."""
    tokenizer = processor.tokenizer
    shape: dict[str, Any] = {"hidden_size": hidden_size, "intermediate_size": 2 * hidden_size, "num_attention_heads": 4}
    side = max(processor.height, processor.width)
    vision = CLIPVisionConfig(**shape, num_hidden_layers=tower_layers, image_size=side, patch_size=processor.patch_size)
    text = LlamaConfig(
        **shape,
        num_hidden_layers=lm_layers,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=processor.image_token_id,
        image_seq_length=processor.num_image_tokens,
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config)
