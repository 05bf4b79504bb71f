"""The second lesson: a tiny LLaVA learns to describe images, as a real one has before anybody trains it for ReID.

Without it the image tokens are noise to the language model, and the language loss has next to nothing to tell the
visual encoder. It learns on people who are used nowhere else, and goes on with the first lesson beside: from images
alone it soon forgets to continue a caption, and its continuations then say little of the person.
"""

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
from .descent import descend
from .lesson import LanguageLesson

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
    lesson: LanguageLesson,
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

    Every step is one of `lesson` too, at the same weight. Returns the sum of both losses in the last tenth of the
    steps, nats a token.
    """
    processor = lesson.processor
    pixels, captions = described_images(processor, people, seed=seed)
    targets = [[processor.target_ids(text, target_tokens) for text in texts] for texts in captions]
    prompts = [processor.image_prompt_ids(instruction) for instruction in instructions]
    model = MllmReIDModel.from_mllm(mllm, height=processor.height, width=processor.width, loss_lambda=0.0)
    model.config.image_prefix_ids = processor.image_prefix_ids
    rng = np.random.default_rng(seed)

    def loss_of_step() -> Tensor:
        chosen = rng.integers(len(pixels), size=batch_size)
        of_rows = [targets[row][rng.integers(len(targets[row]))] for row in chosen]
        rows = processor.rows([prompts[rng.integers(len(prompts))] for _ in chosen], of_rows)
        batch = pixels[torch.from_numpy(chosen)]
        mirrored = torch.from_numpy(rng.random(batch_size) < 0.5)[:, None, None, None]
        total, tokens = model.image_language_loss(torch.where(mirrored, batch.flip(-1), batch), **rows)
        return total / tokens + lesson.loss(mllm, batch_size, rng)

    mllm.train()
    last = descend(
        loss_of_step,
        mllm.parameters(),
        steps=steps,
        warmup=100,
        learning_rate=learning_rate,
        weight_decay=0.05,
        name="image lesson",
    )
    mllm.eval()
    return last
