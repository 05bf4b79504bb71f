"""The language lesson: a tiny LLaVA learns to continue captions, so that its continuations mean something.

An untrained language model would teach noise. It learns on captions of people who are used nowhere else.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from ..data.synthetic import sample_descriptions
from ..model import MllmReIDProcessor
from .descent import descend


class LanguageLesson:
    """Pairs of texts: after a caption come other captions of the same person in the same view.

    The instructions take turns, so that the language model knows them all alike.
    """

    def __init__(
        self, processor: MllmReIDProcessor, instructions: Sequence[str], *, people: int, target_tokens: int, seed: int
    ):
        self.processor = processor
        self.pairs: list[tuple[list[int], list[int]]] = []
        for number, (first, *others) in enumerate(sample_descriptions(people, seed=seed, captions=4)):
            prompt = processor.text_prompt_ids(first, instructions[number % len(instructions)])
            self.pairs.append((prompt, processor.target_ids(" ".join(others), target_tokens)))

    def loss(self, mllm: LlavaForConditionalGeneration, batch_size: int, rng: np.random.Generator) -> Tensor:
        """The mean cross-entropy, nats a token, of `batch_size` pairs that `rng` draws."""
        chosen = [self.pairs[number] for number in rng.integers(len(self.pairs), size=batch_size)]
        rows = self.processor.rows(*(list(column) for column in zip(*chosen, strict=True)))
        targets = rows["labels"][:, 1:]
        hidden = mllm.model.language_model(
            inputs_embeds=mllm.get_input_embeddings()(rows["input_ids"]), attention_mask=rows["attention_mask"]
        ).last_hidden_state
        logits = mllm.lm_head(hidden[:, :-1][targets != -100])
        return torch.nn.functional.cross_entropy(logits, targets[targets != -100])


def teach_language(
    mllm: LlavaForConditionalGeneration,
    lesson: LanguageLesson,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Trains the language model alone, in place; returns the loss of the last tenth of the steps, nats a token."""
    rng = np.random.default_rng(seed)
    mllm.train()
    last = descend(
        lambda: lesson.loss(mllm, batch_size, rng),
        [*mllm.model.language_model.parameters(), *mllm.lm_head.parameters()],
        steps=steps,
        warmup=50,
        learning_rate=learning_rate,
        weight_decay=0.01,
        name="language lesson",
    )
    mllm.eval()
    return last
