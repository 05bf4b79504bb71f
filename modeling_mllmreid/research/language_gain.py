"""The gain of the image for the language loss: the loss of a text given its image, another image, or its caption."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from ..data.contract import image_sources
from ..data.images import ImageSource, open_image
from ..evaluation.torch_embedding import eval_mode
from ..model import MllmReIDModel, MllmReIDProcessor
from ..model.backbone import Image
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
    """Computes the loss of each text given its own image and given an image of another person.

    Args:
        model (`MllmReIDModel`): The model.
        processor (`MllmReIDProcessor`): Its processor.
        split (`Dataset`): N samples of the data contract.
        texts (`Sequence[str]`): N targets, one for each sample.
        max_target_tokens (`int`): Length that targets are cut to, in tokens.
        batch_size (`int`): Samples in a batch.

    Returns:
        `tuple[float, float]`: Loss given the own image and loss given the other image, means over target tokens in
        nats. The other image is that of the next sample of another person.

    Raises:
        UserError: If all samples are of one person.
    """
    targets = [processor.target_ids(text, max_target_tokens) for text in texts]
    prompt, count = processor.image_prompt_ids(), max(sum(map(len, targets)), 1)
    own, other = own_and_other_losses(model, processor, split, prompt, targets, batch_size=batch_size)
    return float(own.sum()) / count, float(other.sum()) / count


def own_and_other_losses(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    split: Dataset,
    prompt: list[int],
    targets: Sequence[list[int]],
    *,
    batch_size: int = 64,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes `image_losses` with the own images of a split, and with those of `images_of_others`."""
    sources, others = image_sources(split), images_of_others(split["person_id"][:])
    own, other = (
        image_losses(model, processor, [sources[sample] for sample in order], prompt, targets, batch_size=batch_size)
        for order in (range(len(sources)), others)
    )
    return own, other


def images_of_others(person_ids: Sequence[int]) -> list[int]:
    """For each of N samples the index of the next sample of another person; the first follows the last.

    Raises UserError if all samples are of one person.
    """
    count = len(person_ids)
    if len(set(person_ids)) < 2:
        raise UserError(f"all {count} samples are of one person: give samples of at least two")
    return [
        next(
            other % count
            for other in range(sample + 1, sample + count)
            if person_ids[other % count] != person_ids[sample]
        )
        for sample in range(count)
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
    """Computes the loss of each target after the image prompt with its image. The mode of the model is restored.

    Args:
        model (`MllmReIDModel`): The model; it runs in eval mode.
        processor (`MllmReIDProcessor`): Its processor.
        images (`Sequence[ImageSource]`): N images.
        prompt (`list[int]`): Ids from `processor.image_prompt_ids`.
        targets (`Sequence[list[int]]`): N lists of ids.
        batch_size (`int`): Samples in a batch.

    Returns:
        `np.ndarray`: (N,) float64, in nats, summed over the tokens of the target.
    """
    losses = []
    with eval_mode(model), torch.inference_mode():
        for batch in _batches(len(targets), batch_size):
            inputs = processor.build_inputs([prompt] * len(batch), [targets[sample] for sample in batch])
            pixels = read_pixels(processor, [images[sample] for sample in batch])
            image = model.project_image(model.run_tower(pixels))
            losses.append(_sample_losses(model, model.embed_with_image(inputs["input_ids"], image), inputs, image))
    return np.concatenate(losses)


def text_losses(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    prompts: Sequence[list[int]],
    targets: Sequence[list[int]],
    *,
    batch_size: int = 64,
) -> np.ndarray:
    """As `image_losses`, after text prompts. prompts: N lists of ids."""
    losses = []
    with eval_mode(model), torch.inference_mode():
        for batch in _batches(len(targets), batch_size):
            inputs = processor.build_inputs(
                [prompts[sample] for sample in batch], [targets[sample] for sample in batch]
            )
            losses.append(_sample_losses(model, model.embed_tokens(inputs["input_ids"]), inputs))
    return np.concatenate(losses)


def read_pixels(processor: MllmReIDProcessor, images: Sequence[ImageSource]) -> Tensor:
    """Reads images as pixel values (B, 3, H, W)."""
    pixels: Tensor = processor(images=[open_image(image) for image in images])["pixel_values"]
    return pixels


def _batches(count: int, batch_size: int) -> Iterator[range]:
    """The indices of each batch."""
    for start in range(0, count, batch_size):
        yield range(start, min(start + batch_size, count))


def _sample_losses(
    model: MllmReIDModel, embeddings: Tensor, inputs: dict[str, Tensor], image: Image | None = None
) -> np.ndarray:
    """Nats of each sample's labels, (B,) float64; embeddings: (B, T, D). The head only runs at label positions."""
    hidden, _ = model.run_language_model(embeddings, inputs["attention_mask"], image, whole=True)
    targets = inputs["labels"][:, 1:]
    at_labels = targets != -100
    logits = model.get_output_embeddings()(hidden[:, :-1][at_labels.to(hidden.device)])
    nats = torch.zeros(targets.shape, dtype=torch.float64)
    label_nats = F.cross_entropy(logits.float(), targets[at_labels].to(logits.device), reduction="none")
    nats[at_labels] = label_nats.cpu().double()
    return np.asarray(nats.sum(1).numpy())
