"""The language lesson: a tiny LLaVA learns to continue captions, so that its continuations mean something.

An untrained language model would teach noise. It learns on captions of people who are used nowhere else.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import LlavaForConditionalGeneration

from ..data.synthetic import sample_descriptions
from ..model import MllmReIDProcessor


def lesson_ids(
    processor: MllmReIDProcessor, instructions: Sequence[str], *, people: int, target_tokens: int, seed: int
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, target ids) of `people`: after a caption come other captions of the same person in the same view.

    The instructions take turns, so that the language model knows them all alike.
    """
    lessons = []
    for number, (first, *others) in enumerate(sample_descriptions(people, seed=seed, captions=4)):
        target = processor.target_ids(" ".join(others), target_tokens)
        lessons.append((processor.text_prompt_ids(first, instructions[number % len(instructions)]), target))
    return lessons


def teach_language(
    mllm: LlavaForConditionalGeneration,
    processor: MllmReIDProcessor,
    *,
    instructions: Sequence[str],
    people: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    target_tokens: int,
    seed: int,
) -> float:
    """Trains the language model alone, in place; returns the loss of the last tenth of the steps, nats a token."""
    lessons = lesson_ids(processor, instructions, people=people, target_tokens=target_tokens, seed=seed)
    parameters = [*mllm.model.language_model.parameters(), *mllm.lm_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    rng, losses = np.random.default_rng(seed), []
    mllm.train()
    with tqdm(range(steps), desc="language lesson", unit="step") as bar:
        for _ in bar:
            chosen = [lessons[i] for i in rng.integers(len(lessons), size=batch_size)]
            rows = processor.rows(*(list(column) for column in zip(*chosen, strict=True)))
            targets = rows.pop("labels")[:, 1:]
            hidden = mllm.model.language_model(
                inputs_embeds=mllm.get_input_embeddings()(rows["input_ids"]), attention_mask=rows["attention_mask"]
            ).last_hidden_state
            logits = mllm.lm_head(hidden[:, :-1][targets != -100])
            loss = torch.nn.functional.cross_entropy(logits, targets[targets != -100])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            if len(losses) % 50 == 0:
                bar.set_postfix(loss=f"{float(loss):.3f}")
    mllm.eval()
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())
