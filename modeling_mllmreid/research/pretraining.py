"""Pretraining of the tiny LLaVA: it continues captions, then it describes images.

An untrained language model gives no useful gradient to the visual encoder. Both steps use people who are in no data
set. The second step repeats the first one in every step: from images alone the model soon forgets to continue a
caption, and its continuations then keep little of the person.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LlavaForConditionalGeneration

from ..model import MllmReIDModel, MllmReIDProcessor
from ..synthetic.people.attributes import make_person, random_stream
from ..synthetic.people.captions import sample_descriptions, seen_items, write_captions
from ..synthetic.rendering.crops import render
from ..synthetic.rendering.scenes import make_scene
from ..synthetic.rendering.shots import plan_shot, view_of
from .optimize import optimize


class CaptionPretraining:
    """Pairs of a caption, as prompt, and other captions of the same person in the same view, as target.

    The pairs cycle through the instructions, so that the language model sees each equally often.

    Args:
        processor (`MllmReIDProcessor`): The processor, for the ids.
        instructions (`Sequence[str]`): Texts of the instructions.
        people (`int`): Number of people, one pair for each.
        target_tokens (`int`): Length that targets are cut to, in tokens.
        seed (`int`): Seed of the people and captions.
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
        """The mean cross-entropy of `batch_size` random pairs, in nats per token."""
        chosen = [self.pairs[number] for number in rng.integers(len(self.pairs), size=batch_size)]
        batch = self.processor.build_inputs(*(list(column) for column in zip(*chosen, strict=True)))
        targets = batch["labels"][:, 1:]
        hidden = mllm.model.language_model(
            inputs_embeds=mllm.get_input_embeddings()(batch["input_ids"]), attention_mask=batch["attention_mask"]
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
    """Trains only the language model, in place.

    Returns the loss of the last tenth of the steps, in nats per token.
    """
    rng = np.random.default_rng(seed)
    mllm.train()
    final_loss = optimize(
        lambda: caption_task.loss(mllm, batch_size, rng),
        [([*mllm.model.language_model.parameters(), *mllm.lm_head.parameters()], learning_rate)],
        steps=steps,
        warmup=50,
        weight_decay=0.01,
        name="language pretraining",
    )
    mllm.eval()
    return final_loss


IMAGES_PER_PERSON = 3
SCENES = 60


def described_images(processor: MllmReIDProcessor, people: int, *, seed: int) -> tuple[Tensor, list[list[str]]]:
    """Renders people, each before three cameras: pixel values (N, 3, H, W) and four captions of each image."""
    pixels, captions = [], []
    for index in tqdm(range(people), desc="images of the pretraining", unit="person", disable=None):
        person = make_person(seed, "other", index)
        for number in range(IMAGES_PER_PERSON):
            rng = random_stream(seed, "other", "shot", index, number)
            scene = make_scene(seed, rng.randrange(SCENES))
            shot = plan_shot(rng, scene)
            crop = render(person, shot, scene, seed=seed, size=(processor.height, processor.width))
            pixels.append(processor(images=[crop.image])["pixel_values"][0])
            captions.append(write_captions(person, seen_items(crop.visible), view_of(shot), 4, rng))
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
    """Trains the whole LLaVA to write the caption of an image, in place.

    Every step adds the loss of `caption_task` at the same weight.

    Args:
        mllm (`LlavaForConditionalGeneration`): The model.
        caption_task (`CaptionPretraining`): The first task.
        instructions (`Sequence[str]`): Texts of the instructions to draw from.
        people (`int`): Number of people, three images for each.
        steps (`int`): Number of steps.
        batch_size (`int`): Images in a step.
        learning_rate (`float`): Peak learning rate.
        target_tokens (`int`): Length that targets are cut to, in tokens.
        seed (`int`): Seed of people and batches.

    Returns:
        `float`: Sum of both losses in the last tenth of the steps, in nats per token.
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
        chosen_targets = [targets[image][rng.integers(len(targets[image]))] for image in chosen]
        inputs = processor.build_inputs([prompts[rng.integers(len(prompts))] for _ in chosen], chosen_targets)
        images = pixels[torch.from_numpy(chosen)]
        mirrored = torch.from_numpy(rng.random(batch_size) < 0.5)[:, None, None, None]
        total, tokens = model.image_language_loss(torch.where(mirrored, images.flip(-1), images), **inputs)
        loss: Tensor = total / tokens + caption_task.loss(mllm, batch_size, rng)
        return loss

    mllm.train()
    final_loss = optimize(
        step_loss,
        [(mllm.parameters(), learning_rate)],
        steps=steps,
        warmup=100,
        weight_decay=0.05,
        name="image pretraining",
    )
    mllm.eval()
    return final_loss
