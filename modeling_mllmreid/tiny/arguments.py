"""The tiny LLaVA's sizes and its lesson, and both steps by them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import LlavaForConditionalGeneration

from ..data.synthetic import sample_descriptions
from ..model import MllmReIDProcessor
from .lesson import teach_language
from .llava import build_processor, build_tiny_llava

# The two parts that continuations are read from: other seeds than the people who are trained and tested on.
VOCABULARY_SEED, LESSON_SEED = 101, 102


@dataclass
class TinyArguments:
    """Sizes of the tiny LLaVA and of its language model's lesson."""

    patch_size: int = field(default=16, metadata={"help": "Side in pixels of the vision tower's patches."})
    hidden_size: int = field(default=64, metadata={"help": "Width of the vision tower and of the language model."})
    tower_layers: int = field(default=2, metadata={"help": "Blocks of the vision tower."})
    lm_layers: int = field(default=2, metadata={"help": "Blocks of the language model."})
    lesson_people: int = field(default=8000, metadata={"help": "People whose captions the language model learns on."})
    lesson_steps: int = field(default=800, metadata={"help": "Steps of the language model's lesson."})
    lesson_batch_size: int = field(default=32, metadata={"help": "Captions in a step of the lesson."})
    lesson_learning_rate: float = field(default=3e-3, metadata={"help": "Learning rate of the lesson."})


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
) -> float:
    """The lesson, in place; returns its last loss. instructions: by default the processor's own alone."""
    return teach_language(
        mllm,
        processor,
        instructions=instructions or [processor.instruction],
        people=args.lesson_people,
        steps=args.lesson_steps,
        batch_size=args.lesson_batch_size,
        learning_rate=args.lesson_learning_rate,
        target_tokens=target_tokens,
        seed=LESSON_SEED,
    )
