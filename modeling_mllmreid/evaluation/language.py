"""Does the image help the language model? The loss of a text given its own image, and given another person's."""

from collections.abc import Sequence

import torch
from datasets import Dataset

from ..data import image_sources, open_image
from ..model import MllmReIDModel, MllmReIDProcessor
from .embedding import eval_mode


def image_helps(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    split: Dataset,
    texts: Sequence[str],
    *,
    max_target_tokens: int = 32,
    batch_size: int = 64,
) -> tuple[float, float]:
    """(loss given the own image, loss given another person's), both the mean over target tokens in nats.

    split: N rows of the data contract; texts: N targets, text i of row i. The other image is that of the next row of
    another person. Raises ValueError where all rows are of one person.
    """
    people = split["person_id"][:]
    if len(set(people)) < 2:
        raise ValueError("all rows are of one person: give rows of at least two")
    rows = len(people)
    others = [next(j % rows for j in range(i + 1, i + rows) if people[j % rows] != people[i]) for i in range(rows)]
    sources = image_sources(split)
    targets = [processor.target_ids(text, max_target_tokens) for text in texts]
    losses = []
    for order in (range(rows), others):
        total, count = 0.0, 0
        for start in range(0, rows, batch_size):
            batch = range(start, min(start + batch_size, rows))
            inputs = processor.rows([processor.image_prompt_ids()] * len(batch), [targets[i] for i in batch])
            pixels = processor(images=[open_image(sources[order[i]]) for i in batch])["pixel_values"]
            with eval_mode(model), torch.inference_mode():
                inputs = {name: value.to(model.device) for name, value in inputs.items()}
                loss, tokens = model.image_language_loss(pixels.to(model.device), **inputs)
                total, count = total + float(loss), count + tokens
        losses.append(total / max(count, 1))
    return losses[0], losses[1]
