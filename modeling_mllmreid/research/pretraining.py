"""Pretraining of the tiny LLaVA: continuing captions, then describing images.

An untrained language model would teach noise. It learns on captions of people who are used nowhere else.

Without it the image tokens are noise to the language model, and the language loss has next to nothing to tell the
visual encoder. It learns on people who are used nowhere else, and goes on with the first lesson beside: from images
alone it soon forgets to continue a caption, and its continuations then say little of the person.
"""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter
from tqdm.auto import tqdm
from transformers import LlavaForConditionalGeneration

from ..model import MllmReIDModel, MllmReIDProcessor
from ..synthetic.attributes import make_person, random_stream
from ..synthetic.cameras import CAMERAS
from ..synthetic.captions import sample_descriptions, write_captions
from ..synthetic.shots import plan_shot, render


def optimize(
    step_loss: Callable[[], Tensor],
    parameters: Iterable[Parameter],
    *,
    steps: int,
    warmup: int,
    learning_rate: float,
    weight_decay: float,
    name: str,
) -> float:
    """AdamW with a linear warm-up and a cosine to zero, in place; returns the mean loss of the last tenth of steps."""
    parameters = list(parameters)
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    losses: list[Tensor] = []
    with tqdm(range(steps), desc=name, unit="step", disable=None) as bar:
        for _ in bar:
            loss = step_loss()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
            if len(losses) % 50 == 0:
                bar.set_postfix(loss=f"{float(losses[-1]):.3f}")
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())


class CaptionPretraining:
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
        rows = self.processor.build_inputs(*(list(column) for column in zip(*chosen, strict=True)))
        targets = rows["labels"][:, 1:]
        hidden = mllm.model.language_model(
            inputs_embeds=mllm.get_input_embeddings()(rows["input_ids"]), attention_mask=rows["attention_mask"]
        ).last_hidden_state
        logits = mllm.lm_head(hidden[:, :-1][targets != -100])
        return torch.nn.functional.cross_entropy(logits, targets[targets != -100])


def pretrain_language(
    mllm: LlavaForConditionalGeneration,
    caption_task: CaptionPretraining,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Trains the language model alone, in place; returns the loss of the last tenth of the steps, nats a token."""
    rng = np.random.default_rng(seed)
    mllm.train()
    last = optimize(
        lambda: caption_task.loss(mllm, batch_size, rng),
        [*mllm.model.language_model.parameters(), *mllm.lm_head.parameters()],
        steps=steps,
        warmup=50,
        learning_rate=learning_rate,
        weight_decay=0.01,
        name="language lesson",
    )
    mllm.eval()
    return last


IMAGES_EACH = 3


def described_images(processor: MllmReIDProcessor, people: int, *, seed: int) -> tuple[Tensor, list[list[str]]]:
    """(pixel values (N, 3, H, W), four captions of each) of `people`, each before three cameras of the street."""
    pixels, captions = [], []
    for index in tqdm(range(people), desc="images of the lesson", unit="person", disable=None):
        person = make_person(seed, "other", index)
        for number in range(IMAGES_EACH):
            shot = plan_shot(random_stream(seed, "other", "shot", index, number), (index + number) % len(CAMERAS))
            pixels.append(processor(images=[render(person, shot, seed=seed)])["pixel_values"][0])
            rng = random_stream(seed, "other", "captions", index, number)
            captions.append(write_captions(person, shot, 4, rng))
    return torch.stack(pixels), captions


def align_images(
    mllm: LlavaForConditionalGeneration,
    caption_task: CaptionPretraining,
    *,
    instructions: Sequence[str],
    people: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    target_tokens: int,
    seed: int,
) -> float:
    """Trains the whole LLaVA to write an image's caption, in place; the instructions are drawn at random.

    Every step is one of `caption_task` too, at the same weight. Returns the sum of both losses in the last tenth of the
    steps, nats a token.
    """
    processor = caption_task.processor
    pixels, captions = described_images(processor, people, seed=seed)
    targets = [[processor.target_ids(text, target_tokens) for text in texts] for texts in captions]
    prompts = [processor.image_prompt_ids(instruction) for instruction in instructions]
    model = MllmReIDModel.from_mllm(mllm, height=processor.height, width=processor.width, loss_lambda=0.0)
    model.config.image_prefix_ids = processor.image_prefix_ids
    rng = np.random.default_rng(seed)

    def step_loss() -> Tensor:
        chosen = rng.integers(len(pixels), size=batch_size)
        of_rows = [targets[row][rng.integers(len(targets[row]))] for row in chosen]
        rows = processor.build_inputs([prompts[rng.integers(len(prompts))] for _ in chosen], of_rows)
        batch = pixels[torch.from_numpy(chosen)]
        mirrored = torch.from_numpy(rng.random(batch_size) < 0.5)[:, None, None, None]
        total, tokens = model.image_language_loss(torch.where(mirrored, batch.flip(-1), batch), **rows)
        return total / tokens + caption_task.loss(mllm, batch_size, rng)

    mllm.train()
    last = optimize(
        step_loss,
        mllm.parameters(),
        steps=steps,
        warmup=100,
        learning_rate=learning_rate,
        weight_decay=0.05,
        name="image lesson",
    )
    mllm.eval()
    return last
