"""Does the image help the language model? The loss of each row's text given its image, another one, or its caption."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from ..data.contract import image_sources
from ..data.images import ImageSource, open_image
from ..evaluation.embedding import eval_mode
from ..model import MllmReIDModel, MllmReIDProcessor
from ..utils.errors import UserError


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
    another person. Raises UserError where all rows are of one person.
    """
    sources, others = image_sources(split), images_of_others(split["person_id"][:])
    targets = [processor.target_ids(text, max_target_tokens) for text in texts]
    prompt, count = processor.image_prompt_ids(), max(sum(map(len, targets)), 1)
    own, other = (
        image_losses(model, processor, [sources[row] for row in order], prompt, targets, batch_size=batch_size)
        for order in (range(len(sources)), others)
    )
    return float(own.sum()) / count, float(other.sum()) / count


def images_of_others(person_ids: Sequence[int]) -> list[int]:
    """For each row (N,) the next row of another person, from the start again after the last.

    Raises UserError where all rows are of one person.
    """
    count = len(person_ids)
    if len(set(person_ids)) < 2:
        raise UserError(f"all {count} rows are of one person: give rows of at least two")
    following = (range(row + 1, row + count) for row in range(count))
    return [
        next(at % count for at in rows if person_ids[at % count] != person_ids[row])
        for row, rows in enumerate(following)
    ]


def image_losses(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    images: Sequence[ImageSource],
    prompt: list[int],
    targets: Sequence[list[int]],
    *,
    batch_size: int = 64,
) -> np.ndarray:
    """The loss of each target after an image prompt with its image: (N,) float64, nats summed over its tokens.

    prompt: ids of `processor.image_prompt_ids`; targets: N lists of ids. The model runs in eval mode and is left in the
    mode it was in.
    """
    losses = []
    with eval_mode(model), torch.inference_mode():
        for rows in _batches(len(targets), batch_size):
            inputs = processor.build_inputs([prompt] * len(rows), [targets[row] for row in rows])
            pixels = read_pixels(processor, [images[row] for row in rows])
            image = model._image_embeddings(model._tower(pixels))
            losses.append(_row_losses(model, model._embed_with_image(inputs["input_ids"], image), inputs))
    return np.concatenate(losses)


def text_losses(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    prompts: Sequence[list[int]],
    targets: Sequence[list[int]],
    *,
    batch_size: int = 64,
) -> np.ndarray:
    """The loss of each target after its text prompt, as `image_losses`. prompts: N lists of ids."""
    losses = []
    with eval_mode(model), torch.inference_mode():
        for rows in _batches(len(targets), batch_size):
            inputs = processor.build_inputs([prompts[row] for row in rows], [targets[row] for row in rows])
            losses.append(_row_losses(model, model._embed(inputs["input_ids"]), inputs))
    return np.concatenate(losses)


def read_pixels(processor: MllmReIDProcessor, images: Sequence[ImageSource]) -> Tensor:
    """Images as pixel values (B, 3, H, W)."""
    return processor(images=[open_image(image) for image in images])["pixel_values"]


def _batches(count: int, batch_size: int) -> Iterator[range]:
    for start in range(0, count, batch_size):
        yield range(start, min(start + batch_size, count))


def _row_losses(model: MllmReIDModel, embeddings: Tensor, inputs: dict[str, Tensor]) -> np.ndarray:
    """(B,) float64 nats of each row's labels; embeddings: (B, T, D). The head runs at label positions alone."""
    hidden, _ = model._language_model(embeddings, inputs["attention_mask"], whole=True)
    targets = inputs["labels"][:, 1:]
    at_labels = targets != -100
    logits = model.get_output_embeddings()(hidden[:, :-1][at_labels.to(hidden.device)])
    nats = torch.zeros(targets.shape, dtype=torch.float64)
    of_labels = F.cross_entropy(logits.float(), targets[at_labels].to(logits.device), reduction="none")
    nats[at_labels] = of_labels.cpu().double()
    return nats.sum(1).numpy()
