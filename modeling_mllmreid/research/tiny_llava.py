"""A tiny LLaVA, built from scratch with its own small vocabulary."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from ..model import MllmReIDProcessor
from ..model.crops import crop_image_processor
from ..synthetic.people.captions import sample_descriptions
from ..utils.ranges import Count, CountOrZero, Pixels, Positive
from .pretraining import CaptionPretraining, align_images, pretrain_language

# Standard deviation of the vision tower's position embeddings; 2.0 is the best of 0.02, 0.5, 1 and 2 on val people.
# CLIP's own 0.02 is lost next to the patches: a short training would not learn where a colour is.
POSITION_STD = 2.0
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Builds a lower-case word-level tokenizer with the words of `texts`, in sorted order."""
    splitter, lower = pre_tokenizers.Whitespace(), normalizers.Lowercase()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(lower.normalize_str(text))}
    vocabulary = {word: index for index, word in enumerate(SPECIAL_TOKENS + sorted(words - set(SPECIAL_TOKENS)))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = lower, splitter
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    # No end-of-text token: no text of the pretraining ends, so the model could not write it.
    names = {"pad_token": "<pad>", "bos_token": "<s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, extra_special_tokens=["</s>", "<image>"], **names)


def build_processor(texts: Iterable[str], *, height: int, width: int, patch_size: int) -> MllmReIDProcessor:
    """Builds the processor of a tiny LLaVA.

    Args:
        texts (`Iterable[str]`): Texts whose words are the vocabulary; the words of the prompt are added.
        height (`int`): Height of an image in pixels.
        width (`int`): Width of an image in pixels.
        patch_size (`int`): Side of a patch in pixels.

    Returns:
        `MllmReIDProcessor`: The processor.
    """
    image_processor = crop_image_processor({"height": height, "width": width})
    template = "user: continue the following text. assistant:"
    return MllmReIDProcessor(image_processor, build_tokenizer([template, *texts]), unit=patch_size)


def build_tiny_llava(
    processor: MllmReIDProcessor,
    *,
    hidden_size: int,
    tower_layers: int,
    lm_layers: int,
    seed: int,
    position_std: float | None = None,
) -> LlavaForConditionalGeneration:
    """Builds a randomly initialised LLaVA that fits a processor and reads the last layer of its tower.

    Args:
        processor (`MllmReIDProcessor`): The processor; it gives vocabulary, image size and patch size.
        hidden_size (`int`): Width of the vision tower and of the language model.
        tower_layers (`int`): Blocks of the vision tower.
        lm_layers (`int`): Blocks of the language model.
        seed (`int`): Seed of the weights; the random state of torch is restored.
        position_std (`float`, *optional*): Standard deviation of the vision tower's position embeddings; CLIP's own
            by default.

    Returns:
        `LlavaForConditionalGeneration`: The model, in float32.
    """
    tokenizer = processor.tokenizer
    shape: dict[str, Any] = {"hidden_size": hidden_size, "intermediate_size": 2 * hidden_size, "num_attention_heads": 4}
    side = max(processor.height, processor.width)
    vision = CLIPVisionConfig(**shape, num_hidden_layers=tower_layers, image_size=side, patch_size=processor.unit)
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
        llava = LlavaForConditionalGeneration(config)
        if position_std is not None:
            nn.init.normal_(llava.model.vision_tower.embeddings.position_embedding.weight, std=position_std)
        return llava


# Vocabulary and pretraining have other seeds than the people of the data sets.
VOCABULARY_SEED, PRETRAINING_SEED, ALIGNMENT_SEED = 101, 102, 103

# Increases when the pretraining changes, so that an older tiny LLaVA is not reused.
PRETRAINING_VERSION = 3


@dataclass
class TinyArguments:
    """Sizes of the tiny LLaVA and of its pretraining."""

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
        default=1000, metadata={"help": "People whose images the whole LLaVA then learns to describe."}
    )
    alignment_steps: CountOrZero = field(
        default=0, metadata={"help": "Steps of this image pretraining, with the captions in every step; 0: none."}
    )
    alignment_learning_rate: Positive = field(
        default=2e-3, metadata={"help": "Learning rate of that image pretraining."}
    )

    def __post_init__(self) -> None:
        # Four attention heads of even width: rotary embeddings rotate halves.
        if self.hidden_size % 8:
            raise ValueError(f"hidden_size {self.hidden_size}: give a multiple of 8")


def build_tiny(
    args: TinyArguments, *, height: int, width: int, seed: int, instructions: Sequence[str] = ()
) -> tuple[MllmReIDProcessor, LlavaForConditionalGeneration]:
    """Builds the processor and the untrained LLaVA.

    Args:
        args (`TinyArguments`): The sizes.
        height (`int`): Height of an image in pixels.
        width (`int`): Width of an image in pixels.
        seed (`int`): Seed of the weights.
        instructions (`Sequence[str]`): Texts whose words join the vocabulary, with those of the synthetic captions.

    Returns:
        `tuple[MllmReIDProcessor, LlavaForConditionalGeneration]`: Processor and model.
    """
    captions = [caption for group in sample_descriptions(2000, seed=VOCABULARY_SEED) for caption in group]
    size = {"height": height, "width": width}
    processor = build_processor([*instructions, *captions], patch_size=args.patch_size, **size)
    shape = {name: getattr(args, name) for name in ("hidden_size", "tower_layers", "lm_layers")}
    return processor, build_tiny_llava(processor, seed=seed, position_std=POSITION_STD, **shape)


def pretrain_tiny(
    mllm: LlavaForConditionalGeneration,
    processor: MllmReIDProcessor,
    args: TinyArguments,
    *,
    target_tokens: int,
    instructions: Sequence[str] | None = None,
) -> dict[str, float]:
    """Pretrains the tiny LLaVA in place.

    Args:
        mllm (`LlavaForConditionalGeneration`): The model.
        processor (`MllmReIDProcessor`): Its processor.
        args (`TinyArguments`): Steps, people and learning rates.
        target_tokens (`int`): Length that targets are cut to, in tokens.
        instructions (`Sequence[str]`, *optional*): Texts of the instructions; by default that of the processor.

    Returns:
        `dict[str, float]`: The last loss of "language", and with `alignment_steps` of "both", in nats per token.
    """
    instructions = instructions or [processor.instruction]
    caption_task = CaptionPretraining(
        processor, instructions, people=args.pretraining_people, target_tokens=target_tokens, seed=PRETRAINING_SEED
    )
    losses = {
        "language": pretrain_language(
            mllm,
            caption_task,
            steps=args.pretraining_steps,
            batch_size=args.pretraining_batch_size,
            learning_rate=args.pretraining_learning_rate,
            seed=PRETRAINING_SEED,
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
