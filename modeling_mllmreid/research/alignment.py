"""Alignment: the image tokens of a composed LLaVA learn to name the words of the captions.

A new projector gives the language model vectors that are unlike any word, of a tower that no text has trained. The
language loss alone takes long to change that, and each of its steps runs the whole language model. Here it does not
run: the mean image token of an image is compared with the embeddings of words, and tower and projector learn to bring
it close to those that stand in the captions.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.images import ImageSource
from ..model import MllmReIDModel, MllmReIDProcessor
from ..utils.errors import UserError
from .language_gain import read_pixels
from .optimize import optimize

# A word that fewer or more of the images have says little about one image. Words such as "a" and "with" are in all.
LEAST_SHARE, MOST_SHARE = 0.005, 0.5
# The logit of a word whose direction the mean image token has, at the length of an embedding.
LARGEST_LOGIT = 15.0
LENGTH_WEIGHT = 0.3


class CaptionWords(NamedTuple):
    """The words that tell images apart.

    Args:
        ids (`torch.Tensor`): (V,) int64: the token ids, ascending.
        present (`torch.Tensor`): (N, V) bool: whether a caption of an image has the token.
    """

    ids: Tensor
    present: Tensor


def caption_words(captions: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> CaptionWords:
    """Finds the tokens that stand in the captions of some images, but not of most.

    Args:
        captions (`Sequence[Sequence[str]]`): The captions of each of N images.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the language model.

    Returns:
        `CaptionWords`: Tokens that `LEAST_SHARE` to `MOST_SHARE` of the images have.

    Raises:
        UserError: No token is left.
    """
    # With a space in front, the first word is the same token as elsewhere.
    sets = [
        {token for text in texts for token in tokenizer(f" {text}", add_special_tokens=False)["input_ids"]}
        for texts in captions
    ]
    counts = Counter(token for found in sets for token in found)
    kept = sorted(token for token, count in counts.items() if LEAST_SHARE <= count / len(sets) <= MOST_SHARE)
    if not kept:
        raise UserError(
            f"captions: no word is in {LEAST_SHARE:.1%} to {MOST_SHARE:.0%} of the {len(captions):,} images, so "
            "none tells images apart: give captions that differ, or more of them"
        )
    # An image at a time: real captions have thousands of words.
    present = torch.stack([torch.tensor([token in found for token in kept]) for found in sets])
    return CaptionWords(torch.tensor(kept), present)


class WordReader(torch.nn.Module):
    """Reads words from image tokens, by the embeddings of a language model.

    Args:
        embeddings (`torch.Tensor`): (V, D): embeddings of the words.
        share (`torch.Tensor`): (V,): the share of images that have each word.
    """

    directions: Tensor

    def __init__(self, embeddings: Tensor, share: Tensor):
        super().__init__()
        # All embeddings share a direction, which would say the same of each word.
        self.register_buffer("directions", F.normalize(embeddings - embeddings.mean(0), dim=1))
        self.length = float(embeddings.norm(dim=1).mean())
        share = share.clamp(LEAST_SHARE, 1 - LEAST_SHARE)
        self.bias = torch.nn.Parameter((share / (1 - share)).log())

    def word_loss(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Returns the binary cross-entropy of all words, in nats an image; tokens: (B, T, D), present: (B, V)."""
        logits = LARGEST_LOGIT / self.length * (tokens.float().mean(1) @ self.directions.T) + self.bias
        return F.binary_cross_entropy_with_logits(logits, present, reduction="sum") / len(tokens)

    def length_loss(self, tokens: Tensor) -> Tensor:
        """Returns the mean squared relative difference of the tokens' lengths from that of the embeddings."""
        relative: Tensor = tokens.float().norm(dim=-1) / self.length
        return (relative - 1).square().mean()


def align_words(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    images: Sequence[ImageSource],
    captions: Sequence[Sequence[str]],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    tower_learning_rate: float,
    seed: int,
) -> tuple[float, float]:
    """Trains tower and projector of a composed LLaVA in place, until its image tokens name the words of captions.

    Args:
        model (`MllmReIDModel`): The model, around a LLaVA, in float32. Its device does the work.
        processor (`MllmReIDProcessor`): Its processor.
        images (`Sequence[ImageSource]`): N images.
        captions (`Sequence[Sequence[str]]`): The captions of each image.
        steps (`int`): Number of steps.
        batch_size (`int`): Images of a step, mirrored at random.
        learning_rate (`float`): Peak learning rate of the projector.
        tower_learning_rate (`float`): Peak learning rate of the tower.
        seed (`int`): Seed of the batches.

    Returns:
        `tuple[float, float]`: Binary cross-entropy of the words in nats an image: from the shares of the words alone,
        and the mean of the last tenth of the steps.

    Raises:
        UserError: No word of the captions tells images apart, or the loss is not finite.
    """
    words = caption_words(captions, processor.tokenizer)
    device, share = model.device, words.present.float().mean(0)
    embeddings = model.get_input_embeddings()(words.ids.to(device)).detach().float()
    reader = WordReader(embeddings, share.to(device)).to(device)
    projector = model.mllm.model.multi_modal_projector
    rng = np.random.default_rng(seed)

    def image_tokens(chosen: Sequence[int]) -> Tensor:
        pixels = read_pixels(processor, [images[index] for index in chosen])
        mirrored = torch.from_numpy(rng.random(len(chosen)) < 0.5)[:, None, None, None]
        pixels = torch.where(mirrored, pixels.flip(-1), pixels).to(device)
        return model.project_image(model.run_tower(pixels)).embeddings

    word_losses: list[Tensor] = []

    def step_loss() -> Tensor:
        chosen = rng.choice(len(images), size=min(batch_size, len(images)), replace=False)
        tokens = image_tokens(chosen.tolist())
        loss = reader.word_loss(tokens, words.present[chosen].float().to(device))
        if not loss.isfinite():
            raise UserError(f"learning_rate {learning_rate:g}: the loss is {loss:g}: lower it, or tower_learning_rate")
        word_losses.append(loss.detach())
        return loss + LENGTH_WEIGHT * reader.length_loss(tokens)

    with torch.no_grad():
        # So that the language model gets vectors of the length that it knows.
        lengths = image_tokens(range(min(batch_size, len(images)))).norm(dim=-1)
        projector.linear_2.weight.mul_(reader.length / float(lengths.mean()))
    model.requires_grad_(False)
    projector.requires_grad_(True)
    model.tower.requires_grad_(True)
    trained = [
        ([*projector.parameters(), reader.bias], learning_rate),
        (list(model.tower.parameters()), tower_learning_rate),
    ]
    model.train()
    optimize(step_loss, trained, steps=steps, warmup=max(1, steps // 20), weight_decay=0.0, name="alignment")
    model.eval()
    chance = F.binary_cross_entropy(share, share, reduction="sum")
    return float(chance), float(torch.stack(word_losses[-max(1, steps // 10) :]).mean())
