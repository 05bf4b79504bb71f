"""A tiny LLaVA built from scratch, with a tokenizer of the words that it needs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
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
from ..synthetic.captions import sample_descriptions
from ..utils.ranges import Count, CountOrZero, Pixels, Positive
from .pretraining import CaptionPretraining, align_images, pretrain_language

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


# What the language model and its vocabulary come from: other seeds than the people who are trained and tested on.
VOCABULARY_SEED, LESSON_SEED, ALIGNMENT_SEED = 101, 102, 103

# Counted up where the lessons change, so that nobody takes a LLaVA taught by older ones for one of these.
PRETRAINING_VERSION = 2


@dataclass
class TinyArguments:
    """Sizes of the tiny LLaVA and of its lessons."""

    patch_size: Pixels = field(default=16, metadata={"help": "Side in pixels of the vision tower's patches."})
    hidden_size: Count = field(default=64, metadata={"help": "Width of the vision tower and of the language model."})
    tower_layers: Count = field(default=2, metadata={"help": "Blocks of the vision tower."})
    lm_layers: Count = field(default=2, metadata={"help": "Blocks of the language model."})
    pretraining_people: Count = field(
        default=8000, metadata={"help": "People whose captions the language model sees in its pretraining."}
    )
    pretraining_steps: Count = field(default=800, metadata={"help": "Steps of the language model's pretraining."})
    pretraining_batch_size: Count = field(default=32, metadata={"help": "Captions in a step of the pretraining."})
    pretraining_learning_rate: Positive = field(default=3e-3, metadata={"help": "Learning rate of the pretraining."})
    alignment_people: Count = field(
        default=1000, metadata={"help": "People whose images the whole LLaVA learns to describe after that."}
    )
    alignment_steps: CountOrZero = field(
        default=0, metadata={"help": "Steps of this second lesson, the first going on beside; 0: none."}
    )
    alignment_learning_rate: Positive = field(default=2e-3, metadata={"help": "Learning rate of the second lesson."})

    def __post_init__(self) -> None:
        # Four attention heads, whose halves are rotated.
        if self.hidden_size % 8:
            raise ValueError(f"hidden_size {self.hidden_size}: give a multiple of 8")


def build_tiny(
    args: TinyArguments, *, height: int, width: int, seed: int, instructions: Sequence[str] = ()
) -> tuple[MllmReIDProcessor, LlavaForConditionalGeneration]:
    """Processor and untaught LLaVA. The vocabulary is that of captions of other people, and of `instructions`."""
    captions = [caption for group in sample_descriptions(2000, seed=VOCABULARY_SEED) for caption in group]
    size = {"height": height, "width": width}
    processor = build_processor([*instructions, *captions], patch_size=args.patch_size, **size)
    shape = {name: getattr(args, name) for name in ("hidden_size", "tower_layers", "lm_layers")}
    return processor, build_tiny_llava(processor, seed=seed, **shape)


def pretrain_tiny(
    mllm: LlavaForConditionalGeneration,
    processor: MllmReIDProcessor,
    args: TinyArguments,
    *,
    target_tokens: int,
    instructions: Sequence[str] | None = None,
) -> dict[str, float]:
    """The lessons, in place; returns the last loss of each. instructions: by default the processor's own alone."""
    instructions = instructions or [processor.instruction]
    caption_task = CaptionPretraining(
        processor, instructions, people=args.pretraining_people, target_tokens=target_tokens, seed=LESSON_SEED
    )
    losses = {
        "language": pretrain_language(
            mllm,
            caption_task,
            steps=args.pretraining_steps,
            batch_size=args.pretraining_batch_size,
            learning_rate=args.pretraining_learning_rate,
            seed=LESSON_SEED,
        )
    }
    if args.alignment_steps:
        losses["both"] = align_images(
            mllm,
            caption_task,
            instructions=instructions,
            people=args.alignment_people,
            steps=args.alignment_steps,
            batch_size=args.pretraining_batch_size,
            learning_rate=args.alignment_learning_rate,
            target_tokens=target_tokens,
            seed=ALIGNMENT_SEED,
        )
    return losses
