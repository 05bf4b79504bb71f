"""Agreement of the image branch and the text branch: perplexities, texts, and a picture of both."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..data.contract import display_label, image_sources, person_names
from ..data.images import ImageSource, open_image
from ..model import MllmReIDModel, MllmReIDProcessor
from ..retrieval.sheet import CROP, FAINT, FRAME, HEADER, HIT, INK, MARGIN, MISS, PAPER
from ..text.generation import check_generation_settings, generation_settings, ready_to_generate, up_to_end
from ..utils.errors import UserError
from ..utils.outputs import atomic_file, png_info
from .language_gain import image_losses, images_of_others, read_pixels, text_losses


@dataclass(frozen=True, eq=False)
class Agreement:
    """Both branches of a model on N samples with a target text each.

    Args:
        person_ids (`np.ndarray`): (N,), the person of each sample.
        texts (`tuple[str, ...]`): N targets.
        written (`tuple[str, ...]`): N texts that the model writes greedily given the image.
        num_tokens (`np.ndarray`): (N,) int64, tokens of each target.
        image_nats (`np.ndarray`): (N,) float64, loss of the target given the image, in nats summed over its tokens.
        text_nats (`np.ndarray`): (N,) float64, the same given the caption.
        other_image_nats (`np.ndarray`): (N,) float64, the same given an image of another person.
        equal_tokens (`np.ndarray`): (N,) int64, positions at which the written token equals that of the target.
    """

    person_ids: np.ndarray
    texts: tuple[str, ...]
    written: tuple[str, ...]
    num_tokens: np.ndarray
    image_nats: np.ndarray
    text_nats: np.ndarray
    other_image_nats: np.ndarray
    equal_tokens: np.ndarray

    @property
    def image_perplexity(self) -> np.ndarray:
        """exp of the mean nats per target token given the image, (N,) float64."""
        return _perplexity(self.image_nats, self.num_tokens)

    @property
    def text_perplexity(self) -> np.ndarray:
        """exp of the mean nats per target token given the caption, (N,) float64."""
        return _perplexity(self.text_nats, self.num_tokens)

    @property
    def exact(self) -> np.ndarray:
        """Whether all written tokens equal those of the target, (N,) bool."""
        return np.asarray(self.equal_tokens == self.num_tokens)

    @property
    def equal_share(self) -> np.ndarray:
        """The share of positions at which the written token equals that of the target, (N,) float64."""
        return np.asarray(self.equal_tokens / self.num_tokens)

    def means(self, samples: np.ndarray | slice = slice(None)) -> dict[str, float | int]:
        """Computes means over samples.

        Args:
            samples (`np.ndarray` or `slice`): A mask or indices of samples; by default all.

        Returns:
            `dict[str, float | int]`: Losses in nats per token and perplexities, over all tokens; the share of samples
            with `exact_match`, the share of `equal_tokens`, and the number of samples as "rows".
        """
        tokens = int(self.num_tokens[samples].sum())
        image, text, other = (
            float(nats[samples].sum()) / tokens for nats in (self.image_nats, self.text_nats, self.other_image_nats)
        )
        return {
            "rows": len(self.num_tokens[samples]),
            "image_loss": image,
            "text_loss": text,
            "other_image_loss": other,
            "image_perplexity": float(_perplexity(np.float64(image), 1)),
            "text_perplexity": float(_perplexity(np.float64(text), 1)),
            "other_image_perplexity": float(_perplexity(np.float64(other), 1)),
            "exact_match": float(self.exact[samples].mean()),
            "equal_tokens": int(self.equal_tokens[samples].sum()) / tokens,
        }

    def by_person(self) -> dict[int, dict[str, float | int]]:
        """The means over the samples of each person, by person id in ascending order."""
        return {int(person): self.means(self.person_ids == person) for person in np.unique(self.person_ids)}

    def to_dict(self) -> dict[str, Any]:
        """The means over all samples and over each person's, and every sample, for JSON; None for infinite values."""
        columns = zip(
            *(self.person_ids.tolist(), self.texts, self.written, self.num_tokens.tolist()),
            *(self.image_perplexity.tolist(), self.text_perplexity.tolist()),
            *(self.exact.tolist(), self.equal_share.tolist()),
            strict=True,
        )
        names = ("person_id", "text", "written", "num_tokens", "image_perplexity", "text_perplexity", "exact_match")
        return {
            "overall": _for_json(self.means()),
            "by_person": {str(person): _for_json(means) for person, means in self.by_person().items()},
            "rows": [_for_json(dict(zip((*names, "equal_tokens"), sample, strict=True))) for sample in columns],
        }


def branch_agreement(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    split: Dataset,
    texts: Sequence[str],
    *,
    instruction: str,
    max_target_tokens: int = 32,
    batch_size: int = 64,
) -> Agreement:
    """Compares both branches of a model on samples of the data contract. The mode of the model is restored.

    The other image of a sample is that of the next sample of another person.

    Args:
        model (`MllmReIDModel`): The model; it runs in eval mode.
        processor (`MllmReIDProcessor`): Its processor.
        split (`Dataset`): N samples; the first caption is the prompt of the text branch.
        texts (`Sequence[str]`): N targets, usually continuations by the frozen language model.
        instruction (`str`): Text of the instruction, in the prompts of both branches.
        max_target_tokens (`int`): Length that targets are cut to, and of the longest text of the image branch.
        batch_size (`int`): Samples in a batch.

    Returns:
        `Agreement`: Losses and texts of each sample.

    Raises:
        UserError: For another number of texts than samples, an empty text, a sample without a caption, samples of one
            person only, and a setting out of range.
    """
    check_generation_settings(max_new_tokens=max_target_tokens, temperature=1.0, batch_size=batch_size)
    if len(texts) != len(split):
        raise UserError(f"texts: {len(texts)} for {len(split)} samples: give one for each")
    captions, names, people = (split[name][:] for name in ("caption", "file_name", "person_id"))
    others = images_of_others(people)
    targets, prompts = [], []
    for text, sample_captions, name in zip(texts, captions, names, strict=True):
        if not sample_captions:
            raise UserError(f"{name}: has no caption for the text branch: leave out samples without one")
        try:
            targets.append(processor.target_ids(text, max_target_tokens))
            prompts.append(processor.text_prompt_ids(sample_captions[0], instruction))
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
        if not targets[-1]:
            raise UserError(f"{name}: its text is empty: leave out samples without a target")
    images, image_prompt = image_sources(split), processor.image_prompt_ids(instruction)
    own, other = (
        image_losses(
            model, processor, [images[sample] for sample in order], image_prompt, targets, batch_size=batch_size
        )
        for order in (range(len(images)), others)
    )
    written = write_from_images(model, processor, images, image_prompt, max_target_tokens, batch_size=batch_size)
    return Agreement(
        person_ids=np.array(people),
        texts=tuple(texts),
        written=tuple(
            processor.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ),
        num_tokens=np.array([len(target) for target in targets]),
        image_nats=own,
        text_nats=text_losses(model, processor, prompts, targets, batch_size=batch_size),
        other_image_nats=other,
        equal_tokens=np.array(
            [
                sum(a == b for a, b in zip(ids, target, strict=False))
                for ids, target in zip(written, targets, strict=True)
            ]
        ),
    )


def write_from_images(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    images: Sequence[ImageSource],
    prompt: list[int],
    max_new_tokens: int,
    *,
    batch_size: int = 64,
) -> list[list[int]]:
    """Writes greedily after an image prompt, as `generate_texts` does without an image. Modes are restored.

    Args:
        model (`MllmReIDModel`): The model.
        processor (`MllmReIDProcessor`): Its processor.
        images (`Sequence[ImageSource]`): N images.
        prompt (`list[int]`): Ids from `processor.image_prompt_ids`.
        max_new_tokens (`int`): Longest text, in tokens.
        batch_size (`int`): Images in a batch.

    Returns:
        `list[list[int]]`: N lists of ids, with the end-of-text id where the model writes it.
    """
    mllm = model.mllm
    settings = generation_settings(mllm, processor.tokenizer, max_new_tokens, None)
    written: list[list[int]] = []
    with ready_to_generate(mllm), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            pixels = read_pixels(processor, images[start : start + batch_size])
            ids = torch.tensor([prompt] * len(pixels))
            # Equal prompts need no padding: every position is attended to.
            mask = torch.ones_like(ids)
            output = model.generate(ids, pixels, attention_mask=mask, generation_config=settings)
            written += [up_to_end(sequence, settings.eos_token_id) for sequence in output.tolist()]
    return written


def _perplexity(nats: np.ndarray | np.float64, tokens: np.ndarray | int) -> np.ndarray:
    """exp of the mean nats per token."""
    with np.errstate(over="ignore"):  # infinity is the right value
        return np.asarray(np.exp(nats / tokens))


def _for_json(values: dict[str, Any]) -> dict[str, Any]:
    """The values, with None for infinite ones."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }


TEXT_WIDTH, COLUMN_GAP, ROW_GAP = 400, 36, 26
COLUMN = CROP[0] + 2 * FRAME + 16 + TEXT_WIDTH
LABEL, TEXT, LINE, BLOCK_GAP = 12, 14, 19, 9

# A label and the lines below it.
Block = tuple[str, list[str]]


def draw_agreement(
    path_png: str | os.PathLike[str],
    split: Dataset,
    agreement: Agreement,
    captions: Sequence[str],
    *,
    examples: int = 4,
) -> None:
    """Draws the samples with the best agreement on the left, and those with the worst on the right.

    An example has its crop, the perplexity of the target given the image, the caption, the target and the text that the
    model writes. With fewer than 2 `examples` samples each column gets half of them; a single sample is in both.

    Args:
        path_png (`str` or `os.PathLike`): The picture.
        split (`Dataset`): N samples of the data contract.
        agreement (`Agreement`): The agreement of these samples.
        captions (`Sequence[str]`): N captions.
        examples (`int`): Number of examples in a column.

    Raises:
        UserError: If split or captions do not fit the agreement, for less than one example, and for a broken image.
    """
    count = len(agreement.texts)
    for name, number in (("split", len(split)), ("captions", len(captions))):
        if number != count:
            raise UserError(f"{name}: {number} for {count} samples of the agreement: give one for each")
    if examples < 1:
        raise UserError(f"examples is {examples}: give 1 or more")
    shown = min(examples, max(count // 2, 1))
    # A stable sort: the first of equal samples are shown, in either column.
    best = np.argsort(agreement.image_perplexity, kind="stable")[:shown]
    worst = np.argsort(-agreement.image_perplexity, kind="stable")[:shown]
    people = [display_label("person", name) for name in person_names(split)]
    blocks = {
        int(sample): _blocks(agreement, int(sample), captions[int(sample)], people[sample])
        for sample in (*best, *worst)
    }
    heights = [
        max(CROP[1] + 2 * FRAME, *(_height(blocks[int(sample)]) for sample in pair))
        for pair in zip(best, worst, strict=True)
    ]
    width = 2 * MARGIN + 2 * COLUMN + COLUMN_GAP
    sheet = Image.new("RGB", (width, HEADER + 34 + sum(heights) + ROW_GAP * (shown - 1) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    means = agreement.means()
    _draw_title(draw, width, count, means["image_perplexity"], means["text_perplexity"])
    sources = image_sources(split)
    for number, (samples, color, heading) in enumerate(
        (
            (best, HIT, "Agree best: least perplexity given the image"),
            (worst, MISS, "Agree worst: most perplexity given the image"),
        )
    ):
        left, top = MARGIN + number * (COLUMN + COLUMN_GAP), HEADER + 34
        draw.text((left, HEADER + 10), heading, fill=color, font=_font(16), anchor="lm")
        for sample, height in zip(samples, heights, strict=True):
            frame = (left, top, left + CROP[0] + 2 * FRAME - 1, top + CROP[1] + 2 * FRAME - 1)
            draw.rectangle(frame, fill=color)
            crop = ImageOps.pad(
                open_image(sources[int(sample)]), CROP, method=Image.Resampling.BICUBIC, color="#eceff3"
            )
            sheet.paste(crop, (left + FRAME, top + FRAME))
            _draw_blocks(draw, (left + COLUMN - TEXT_WIDTH, top), blocks[int(sample)])
            top += height + ROW_GAP
    with atomic_file(path_png) as partial:
        sheet.save(partial, format="PNG", optimize=True, pnginfo=png_info())


def _blocks(agreement: Agreement, sample: int, caption: str, person: str) -> list[Block]:
    """The text next to the crop of a sample."""
    image, text = agreement.image_perplexity[sample], agreement.text_perplexity[sample]
    equal = f"{agreement.equal_tokens[sample]} of {agreement.num_tokens[sample]} tokens as in the target"
    return [
        (
            f"Perplexity of the target, {person}",
            wrapped(f"{image:.3g} given the image, {text:.3g} given the caption"),
        ),
        ("Caption", wrapped(caption)),
        ("Target", wrapped(agreement.texts[sample])),
        (f"Written given the image, {equal}", wrapped(agreement.written[sample])),
    ]


def _height(blocks: Sequence[Block]) -> int:
    return sum(LINE * (1 + len(lines)) + BLOCK_GAP for _, lines in blocks) - BLOCK_GAP


def _draw_blocks(draw: ImageDraw.ImageDraw, place: tuple[int, int], blocks: Sequence[Block]) -> None:
    left, top = place
    for label, lines in blocks:
        draw.text((left, top + LINE // 2), label, fill=FAINT, font=_font(LABEL), anchor="lm")
        for number, line in enumerate(lines, start=1):
            draw.text((left, top + LINE * number + LINE // 2), line, fill=INK, font=_font(TEXT), anchor="lm")
        top += LINE * (1 + len(lines)) + BLOCK_GAP


def _draw_title(draw: ImageDraw.ImageDraw, width: int, count: int, image: float, text: float) -> None:
    title = "Continuations: the image branch and the text branch"
    draw.text((MARGIN, 22), title, fill=INK, font=_font(18), anchor="lm")
    metadata = f"{count:,} samples, mean perplexity {image:.3g} given the image, {text:.3g} given the caption"
    draw.text((MARGIN, 46), metadata, fill=FAINT, font=_font(13), anchor="lm")


def wrapped(text: str, width: int = TEXT_WIDTH) -> list[str]:
    """The text in lines of at most `width` pixels, broken between words and inside long words."""
    font, lines = _font(TEXT), [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".lstrip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that a sheet looks the same on every machine."""
    return ImageFont.load_default(size)
