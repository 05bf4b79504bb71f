"""The tiny LLaVA's sizes and its lessons, and the steps by them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import LlavaForConditionalGeneration

from ..data.synthetic import sample_descriptions
from ..model import MllmReIDProcessor
from ..ranges import Count, CountOrZero, Pixels, Positive
from .alignment import align_images
from .lesson import LanguageLesson, teach_language
from .llava import build_processor, build_tiny_llava

# What the language model and its vocabulary come from: other seeds than the people who are trained and tested on.
VOCABULARY_SEED, LESSON_SEED, ALIGNMENT_SEED = 101, 102, 103

# Counted up where the lessons change, so that nobody takes a LLaVA taught by older ones for one of these.
LESSONS_VERSION = 2


@dataclass
class TinyArguments:
    """Sizes of the tiny LLaVA and of its lessons."""

    patch_size: Pixels = field(default=16, metadata={"help": "Side in pixels of the vision tower's patches."})
    hidden_size: Count = field(default=64, metadata={"help": "Width of the vision tower and of the language model."})
    tower_layers: Count = field(default=2, metadata={"help": "Blocks of the vision tower."})
    lm_layers: Count = field(default=2, metadata={"help": "Blocks of the language model."})
    lesson_people: Count = field(default=8000, metadata={"help": "People whose captions the language model learns on."})
    lesson_steps: Count = field(default=800, metadata={"help": "Steps of the language model's lesson."})
    lesson_batch_size: Count = field(default=32, metadata={"help": "Captions in a step of the lesson."})
    lesson_learning_rate: Positive = field(default=3e-3, metadata={"help": "Learning rate of the lesson."})
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


def teach_tiny(
    mllm: LlavaForConditionalGeneration,
    processor: MllmReIDProcessor,
    args: TinyArguments,
    *,
    target_tokens: int,
    instructions: Sequence[str] | None = None,
) -> dict[str, float]:
    """The lessons, in place; returns the last loss of each. instructions: by default the processor's own alone."""
    instructions = instructions or [processor.instruction]
    lesson = LanguageLesson(
        processor, instructions, people=args.lesson_people, target_tokens=target_tokens, seed=LESSON_SEED
    )
    losses = {
        "language": teach_language(
            mllm,
            lesson,
            steps=args.lesson_steps,
            batch_size=args.lesson_batch_size,
            learning_rate=args.lesson_learning_rate,
            seed=LESSON_SEED,
        )
    }
    if args.alignment_steps:
        losses["both"] = align_images(
            mllm,
            lesson,
            instructions=instructions,
            people=args.alignment_people,
            steps=args.alignment_steps,
            batch_size=args.lesson_batch_size,
            learning_rate=args.alignment_learning_rate,
            target_tokens=target_tokens,
            seed=ALIGNMENT_SEED,
        )
    return losses
