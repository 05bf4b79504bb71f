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
from transformers import GenerationConfig

from ..data.contract import display_label, image_sources, person_names
from ..data.images import ImageSource, open_image
from ..model import MllmReIDModel, MllmReIDProcessor
from ..retrieval.sheet import CROP, FAINT, FRAME, HEADER, HIT, INK, MARGIN, MISS, PAPER
from ..text.generation import check_generation_settings, ready_to_generate, special_tokens
from ..utils.errors import UserError
from ..utils.outputs import atomic_file, png_info
from .language_gain import image_losses, images_of_others, read_pixels, text_losses


@dataclass(frozen=True, eq=False)
class Agreement:
    """Both branches on N rows with a target text each. Arrays are (N,), in the order of the rows.

    texts: the targets; written: what the model writes greedily given the image. num_tokens: int64, target tokens.
    image_nats, text_nats, other_image_nats: float64, the target's loss given the row's image, its caption, and another
    person's image, in nats summed over its tokens. equal_tokens: int64, at how many of the target's positions the
    written token is the target's.
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
        """Where the written tokens are the target's at all of its positions, (N,) bool."""
        return self.equal_tokens == self.num_tokens

    @property
    def equal_share(self) -> np.ndarray:
        """The share of the target's positions where the written token is the target's, (N,) float64."""
        return self.equal_tokens / self.num_tokens

    def means(self, rows: np.ndarray | slice = slice(None)) -> dict[str, float | int]:
        """The means over some rows, all by default: losses in nats per token and their perplexities, over all tokens.

        exact_match is the share of rows, equal_tokens the share of tokens.
        """
        tokens = int(self.num_tokens[rows].sum())
        image, text, other = (
            float(nats[rows].sum()) / tokens for nats in (self.image_nats, self.text_nats, self.other_image_nats)
        )
        return {
            "rows": len(self.num_tokens[rows]),
            "image_loss": image,
            "text_loss": text,
            "other_image_loss": other,
            "image_perplexity": float(_perplexity(np.float64(image), 1)),
            "text_perplexity": float(_perplexity(np.float64(text), 1)),
            "other_image_perplexity": float(_perplexity(np.float64(other), 1)),
            "exact_match": float(self.exact[rows].mean()),
            "equal_tokens": int(self.equal_tokens[rows].sum()) / tokens,
        }

    def by_person(self) -> dict[int, dict[str, float | int]]:
        """The means over each person's rows, by person id in ascending order."""
        return {int(person): self.means(self.person_ids == person) for person in np.unique(self.person_ids)}

    def to_dict(self) -> dict[str, Any]:
        """The means over all rows, over each person's, and every row, for JSON: None for what is not finite."""
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
            "rows": [_for_json(dict(zip((*names, "equal_tokens"), row, strict=True))) for row in columns],
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
    """Both branches of a model on N rows of the data contract, text i the target of row i.

    texts: what the frozen language model wrote after the row's first caption, which the text branch is given; cut to
    `max_target_tokens`. instruction: the text of it, in both branches' prompts. The image branch writes as many tokens,
    ordinary ones as the targets' are. The other image is that of the next row of another person. The model runs in eval
    mode and is left in the mode it was in.
    Raises UserError for texts that differ in number from the rows, an empty text, a row without a caption, rows of one
    person, a setting that is out of range.
    """
    check_generation_settings(max_new_tokens=max_target_tokens, temperature=1.0, batch_size=batch_size)
    if len(texts) != len(split):
        raise UserError(f"texts: {len(texts)} for {len(split)} rows: give one for each")
    captions, names, people = (split[name][:] for name in ("caption", "file_name", "person_id"))
    others = images_of_others(people)
    targets, prompts = [], []
    for text, of_row, name in zip(texts, captions, names, strict=True):
        if not of_row:
            raise UserError(f"{name}: has no caption for the text branch: leave out rows without one")
        try:
            targets.append(processor.target_ids(text, max_target_tokens))
            prompts.append(processor.text_prompt_ids(of_row[0], instruction))
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
        if not targets[-1]:
            raise UserError(f"{name}: its text is empty: leave out rows without a target")
    images, image_prompt = image_sources(split), processor.image_prompt_ids(instruction)
    own, other = (
        image_losses(model, processor, [images[row] for row in order], image_prompt, targets, batch_size=batch_size)
        for order in (range(len(images)), others)
    )
    written = write_from_images(model, processor, images, image_prompt, max_target_tokens, batch_size=batch_size)
    return Agreement(
        person_ids=np.array(people),
        texts=tuple(texts),
        written=tuple(processor.tokenizer.batch_decode(written, clean_up_tokenization_spaces=False)),
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
    """What the model writes greedily after an image prompt with each image: N lists of `max_new_tokens` ordinary ids.

    The counterpart of `generate_texts`, which has no image. Modes and generation settings are left as found.
    """
    tokenizer, mllm = processor.tokenizer, model.mllm
    unnamed = range(len(tokenizer), mllm.config.get_text_config().vocab_size)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        suppress_tokens=[*sorted(special_tokens(mllm, tokenizer)), *unnamed],
        pad_token_id=tokenizer.pad_token_id,
    )
    written: list[list[int]] = []
    with ready_to_generate(mllm), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            pixels = read_pixels(processor, images[start : start + batch_size])
            ids = torch.tensor([prompt] * len(pixels))
            # Equal prompts need no padding, so that every position is attended to.
            mask = torch.ones_like(ids)
            written += model.generate(ids, pixels, attention_mask=mask, generation_config=settings).tolist()
    return written


def _perplexity(nats: np.ndarray | np.float64, tokens: np.ndarray | int) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinity says what there is to say
        return np.exp(nats / tokens)


def _for_json(values: dict[str, Any]) -> dict[str, Any]:
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
    """Draws at the left the rows whose target is the likeliest given the image, at the right the least likely ones.

    split, agreement, captions: N rows, in one order. For each example: the crop, the perplexity of the target, the
    caption, the target, and what the model wrote given the image, all in full. With fewer than 2 `examples` rows both
    columns get half of them; a single row stands in both.
    Raises UserError where split or captions do not fit the agreement, for no example, and for a broken image.
    """
    count = len(agreement.texts)
    for name, number in (("split", len(split)), ("captions", len(captions))):
        if number != count:
            raise UserError(f"{name}: {number} for {count} rows of the agreement: give one for each")
    if examples < 1:
        raise UserError(f"examples is {examples}: give 1 or more")
    shown = min(examples, max(count // 2, 1))
    # Stable: of equal rows the first ones are shown, in either column.
    best = np.argsort(agreement.image_perplexity, kind="stable")[:shown]
    worst = np.argsort(-agreement.image_perplexity, kind="stable")[:shown]
    people = [display_label("person", name) for name in person_names(split)]
    blocks = {int(row): _blocks(agreement, int(row), captions[int(row)], people[row]) for row in (*best, *worst)}
    heights = [
        max(CROP[1] + 2 * FRAME, *(_height(blocks[int(row)]) for row in pair)) for pair in zip(best, worst, strict=True)
    ]
    width = 2 * MARGIN + 2 * COLUMN + COLUMN_GAP
    sheet = Image.new("RGB", (width, HEADER + 34 + sum(heights) + ROW_GAP * (shown - 1) + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    means = agreement.means()
    _draw_title(draw, width, count, means["image_perplexity"], means["text_perplexity"])
    sources = image_sources(split)
    for number, (rows, color, heading) in enumerate(
        (
            (best, HIT, "Agree best: least perplexity given the image"),
            (worst, MISS, "Agree worst: most perplexity given the image"),
        )
    ):
        left, top = MARGIN + number * (COLUMN + COLUMN_GAP), HEADER + 34
        draw.text((left, HEADER + 10), heading, fill=color, font=_font(16), anchor="lm")
        for row, height in zip(rows, heights, strict=True):
            frame = (left, top, left + CROP[0] + 2 * FRAME - 1, top + CROP[1] + 2 * FRAME - 1)
            draw.rectangle(frame, fill=color)
            crop = ImageOps.pad(open_image(sources[int(row)]), CROP, method=Image.Resampling.BICUBIC, color="#eceff3")
            sheet.paste(crop, (left + FRAME, top + FRAME))
            _draw_blocks(draw, (left + COLUMN - TEXT_WIDTH, top), blocks[int(row)])
            top += height + ROW_GAP
    with atomic_file(path_png) as aside:
        sheet.save(aside, format="PNG", optimize=True, pnginfo=png_info())


def _blocks(agreement: Agreement, row: int, caption: str, person: str) -> list[Block]:
    """What is written beside a row's crop."""
    image, text = agreement.image_perplexity[row], agreement.text_perplexity[row]
    equal = f"{agreement.equal_tokens[row]} of {agreement.num_tokens[row]} tokens as in the target"
    return [
        (
            f"Perplexity of the target, {person}",
            wrapped(f"{image:.3g} given the image, {text:.3g} given the caption"),
        ),
        ("Caption", wrapped(caption)),
        ("Target", wrapped(agreement.texts[row])),
        (f"Written given the image, {equal}", wrapped(agreement.written[row])),
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
    title = "Continuations: the image branch beside the text branch"
    draw.text((MARGIN, 22), title, fill=INK, font=_font(18), anchor="lm")
    metadata = f"{count:,} rows, mean perplexity {image:.3g} given the image, {text:.3g} given the caption"
    draw.text((MARGIN, 46), metadata, fill=FAINT, font=_font(13), anchor="lm")


def wrapped(text: str, width: int = TEXT_WIDTH) -> list[str]:
    """The whole text in lines no wider than so many pixels, between words where it can be, and inside long ones."""
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
