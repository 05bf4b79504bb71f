"""The second lesson: a tiny LLaVA learns to describe images, as a real one has before anybody trains it for ReID.

Without it the image tokens are noise to the language model, and the language loss has next to nothing to tell the
visual encoder. It learns on people who are used nowhere else.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlavaForConditionalGeneration

from ..data.synthetic.attributes import make_person, random_stream
from ..data.synthetic.cameras import CAMERAS
from ..data.synthetic.captions import write_captions
from ..data.synthetic.shots import plan_shot, render
from ..model import MllmReIDModel, MllmReIDProcessor

IMAGES_EACH = 3


def described_images(processor: MllmReIDProcessor, people: int, *, seed: int) -> tuple[Tensor, list[list[str]]]:
    """(pixel values (N, 3, H, W), four captions of each) of `people`, each before three cameras of the street."""
    pixels, captions = [], []
    for index in tqdm(range(people), desc="images of the lesson", unit="person"):
        person = make_person(seed, "other", index)
        for number in range(IMAGES_EACH):
            shot = plan_shot(random_stream(seed, "other", "shot", index, number), (index + number) % len(CAMERAS))
            pixels.append(processor(images=[render(person, shot, seed=seed)])["pixel_values"][0])
            rng = random_stream(seed, "other", "captions", index, number)
            captions.append(write_captions(person, shot, 4, rng))
    return torch.stack(pixels), captions


def align_images(
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
    """Trains the whole LLaVA to write an image's caption, in place; the instructions are drawn at random.

    Returns the loss of the last tenth of the steps, nats a token.
    """
    pixels, captions = described_images(processor, people, seed=seed)
    targets = [[processor.target_ids(text, target_tokens) for text in texts] for texts in captions]
    prompts = [processor.image_prompt_ids(instruction) for instruction in instructions]
    model = MllmReIDModel.from_mllm(mllm, height=processor.height, width=processor.width, loss_lambda=0.0)
    model.config.image_prefix_ids = processor.image_prefix_ids
    parameters = list(mllm.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    rng, losses = np.random.default_rng(seed), []
    mllm.train()
    for _ in tqdm(range(steps), desc="image lesson", unit="step"):
        chosen = rng.integers(len(pixels), size=batch_size)
        of_rows = [targets[row][rng.integers(len(targets[row]))] for row in chosen]
        rows = processor.rows([prompts[rng.integers(len(prompts))] for _ in chosen], of_rows)
        batch = pixels[torch.from_numpy(chosen)]
        mirrored = torch.from_numpy(rng.random(batch_size) < 0.5)[:, None, None, None]
        total, tokens = model.image_language_loss(torch.where(mirrored, batch.flip(-1), batch), **rows)
        loss = total / tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    mllm.eval()
    return float(torch.stack(losses[-max(1, steps // 10) :]).mean())
