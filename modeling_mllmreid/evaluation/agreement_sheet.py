"""A picture of the branches' agreement: the rows where they agree best beside those where they agree worst."""

import os
from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..data import image_sources, open_image
from ..data.columns import labelled, person_names
from ..errors import UserError
from ..outputs import png_info, written_aside
from ..retrieval.sheet import CROP, FAINT, FRAME, HEADER, HIT, INK, MARGIN, MISS, PAPER
from .agreement import Agreement

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
    people = [labelled("person", name) for name in person_names(split)]
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
    with written_aside(path_png) as aside:
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
    facts = f"{count:,} rows, mean perplexity {image:.3g} given the image, {text:.3g} given the caption"
    draw.text((MARGIN, 46), facts, fill=FAINT, font=_font(13), anchor="lm")


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
