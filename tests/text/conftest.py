"""A random LLaVA of some thousand weights and its processor; weights are drawn wide, so that texts follow prompts."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from modeling_mllmreid.model import MllmReIDProcessor

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PROMPT_WORDS = ("USER", ":", "ASSISTANT", "Continue", "the", "following", "text", ".")
VOCABULARY = (*SPECIAL, *PROMPT_WORDS, *(f"w{number}" for number in range(80)))
UNNAMED_IDS = 7


@pytest.fixture(scope="session")
def processor():
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=["<image>"], **names)
    images = CLIPImageProcessor(size={"height": 16, "width": 8}, do_center_crop=False)
    return MllmReIDProcessor(images, fast, unit=8)


@pytest.fixture(scope="session")
def mllm():
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**shape, image_size=16, patch_size=8),
        text_config=LlamaConfig(
            **shape, vocab_size=len(VOCABULARY) + UNNAMED_IDS, initializer_range=0.3, attention_dropout=0.5
        ),
        image_token_index=VOCABULARY.index("<image>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LlavaForConditionalGeneration(config).eval()
