"""Ranked sheets: a PNG with each query and its nearest gallery images, hits framed green and misses red."""

import os
from collections.abc import Callable, Mapping, Sequence, Sized

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..errors import UserError
from ..outputs import png_info, written_aside
from .ranking import Ranking
from .same_person import Ids

ImageSource = Image.Image | str | os.PathLike[str] | Callable[[], Image.Image]

CROP = (96, 192)
FRAME, GAP, MARGIN, CAPTION, QUERY_GAP, HEADER = 5, 10, 24, 36, 30, 64
PAPER, INK, FAINT, QUERY, NEUTRAL = "#ffffff", "#1c2430", "#6b7480", "#2b5fa8", "#b9c0c9"
HIT, MISS = "#1f9d45", "#d2322d"


def ranked_sheet(
    path_png: str | os.PathLike[str],
    query_images: Sequence[ImageSource | None],
    gallery_images: Sequence[ImageSource],
    ranking: Ranking,
    *,
    query_person_ids: Ids | None = None,
    gallery_person_ids: Ids | None = None,
    query_camera_ids: Ids | None = None,
    gallery_camera_ids: Ids | None = None,
    title: str = "Nearest gallery images",
    query_titles: Sequence[str] | None = None,
    columns: int = 10,
) -> None:
    """Draws one row per query of the ranking: the query, then its first `columns` images with camera and distance.

    Images are PIL images, paths, or functions that return an image; gallery images are opened only where drawn. A query
    image may be None (search by text): its title is then written in its place; otherwise the title is its caption.
    With person ids on both sides hits are framed green and misses red; without, frames are neutral (search). Cameras
    are captioned where given and known. Any image size; crops are fitted into 96 x 192 pixels, never cut.
    Raises UserError where images, ids or titles do not fit the ranking.
    """
    of_queries = {
        "query_images": query_images,
        "query_person_ids": query_person_ids,
        "query_camera_ids": query_camera_ids,
        "query_titles": query_titles,
    }
    of_gallery = {"gallery_person_ids": gallery_person_ids, "gallery_camera_ids": gallery_camera_ids}
    _check_count(of_queries, len(ranking.indices), "queries in the ranking")
    _check_count(of_gallery, len(gallery_images), "gallery images")
    largest = int(ranking.indices.max(initial=-1))
    if largest >= len(gallery_images):
        raise UserError(
            f"gallery_images: {len(gallery_images)}, but the ranking names image {largest}: give the gallery it ranks"
        )
    judged = query_person_ids is not None and gallery_person_ids is not None
    shown = min(columns, ranking.indices.shape[1])
    step, row_height = CROP[0] + 2 * FRAME + GAP, CROP[1] + 2 * FRAME + CAPTION
    first = MARGIN + CROP[0] + 2 * FRAME + QUERY_GAP
    width = max(first + shown * step - GAP, MARGIN + 460) + MARGIN
    sheet = Image.new("RGB", (width, HEADER + len(query_images) * (row_height + GAP) + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    _draw_header(draw, width, first, shown, step, title, judged)

    for row, source in enumerate(query_images):
        top = HEADER + row * (row_height + GAP)
        name = query_titles[row] if query_titles is not None else f"query {row + 1}"
        _draw_crop(sheet, draw, (MARGIN, top), source, QUERY, name)
        camera = _camera(query_camera_ids, row)
        captions = [name, camera] if source is not None else [camera]
        # Nothing stands beside a query's caption: it may reach into the margins, and says more than a camera.
        _draw_caption(draw, (MARGIN, top), captions, beyond=MARGIN - 4)
        for column in range(shown):
            index = int(ranking.indices[row, column])
            if index < 0:
                break
            place = (first + column * step, top)
            color = NEUTRAL
            if query_person_ids is not None and gallery_person_ids is not None:
                color = HIT if int(query_person_ids[row]) == int(gallery_person_ids[index]) else MISS
            _draw_crop(sheet, draw, place, gallery_images[index], color, "")
            distance = f"{max(float(ranking.distances[row, column]), 0.0):.3f}"
            _draw_caption(draw, place, [_camera(gallery_camera_ids, index), distance])
    with written_aside(path_png) as aside:
        sheet.save(aside, format="PNG", optimize=True, pnginfo=png_info())


def _check_count(values: Mapping[str, Sized | None], count: int, what: str) -> None:
    """Every given value must have one entry for each of the counted things."""
    for name, value in values.items():
        if value is not None and len(value) != count:
            raise UserError(f"{name}: {len(value)} for {count} {what}: give one for each")


def _draw_header(
    draw: ImageDraw.ImageDraw, width: int, first: int, shown: int, step: int, title: str, judged: bool
) -> None:
    """The title, the legend of the frame colours, and the ranks over the columns."""
    legend = [(HIT, "same person"), (MISS, "another person")] if judged else []
    right = width - MARGIN
    for color, text in reversed(legend):
        right -= round(_font(13).getlength(text))
        draw.text((right, 22), text, fill=INK, font=_font(13), anchor="lm")
        right -= 18
        draw.rectangle((right, 16, right + 11, 27), outline=color, width=3)
        right -= 16
    draw.text((MARGIN, 22), _fitted(title, _font(18), right - MARGIN), fill=INK, font=_font(18), anchor="lm")
    for column in range(shown):
        center = first + column * step + FRAME + CROP[0] // 2
        draw.text((center, HEADER - 12), str(column + 1), fill=FAINT, font=_font(12), anchor="mm")
    draw.text((MARGIN + FRAME + CROP[0] // 2, HEADER - 12), "query", fill=QUERY, font=_font(12), anchor="mm")


def _draw_crop(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    source: ImageSource | None,
    color: str,
    text: str,
) -> None:
    """A crop fitted into its frame, or without an image the text in its place."""
    left, top = place
    draw.rectangle((left, top, left + CROP[0] + 2 * FRAME - 1, top + CROP[1] + 2 * FRAME - 1), fill=color)
    inside = (left + FRAME, top + FRAME)
    if source is not None:
        crop = ImageOps.pad(_opened(source), CROP, method=Image.Resampling.BICUBIC, color="#eceff3")
        sheet.paste(crop, inside)
        return
    draw.rectangle((*inside, inside[0] + CROP[0] - 1, inside[1] + CROP[1] - 1), fill="#f4f7fb")
    font = _font(12)
    lines = _wrapped(text, font, CROP[0] - 12)[: (CROP[1] - 12) // 15]
    draw.multiline_text((inside[0] + 6, inside[1] + 6), "\n".join(lines), fill=INK, font=font, spacing=3)


def _draw_caption(draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], beyond: int = 0) -> None:
    """Centred lines under a crop, at most so many pixels beyond its frame on both sides; empty ones are skipped."""
    center, top = place[0] + FRAME + CROP[0] // 2, place[1] + CROP[1] + 2 * FRAME + 10
    for number, line in enumerate(filter(None, lines)):
        text = _fitted(line, _font(12), CROP[0] + 2 * FRAME + 2 * beyond)
        draw.text((center, top + 15 * number), text, fill=FAINT if number else INK, font=_font(12), anchor="mm")


def _opened(source: ImageSource) -> Image.Image:
    """The image as RGB, upright, whatever gives it."""
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    if callable(source):
        return source().convert("RGB")
    try:
        with Image.open(source) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except OSError as error:
        raise UserError(
            f"{os.fspath(source)}: not readable as an image ({error}): mend or leave out this file"
        ) from error


def _camera(cameras: Ids | None, row: int) -> str:
    """The caption of a camera; nothing where it is not given or unknown (-1)."""
    return "" if cameras is None or int(cameras[row]) == -1 else f"cam {int(cameras[row])}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that a sheet looks the same on every machine."""
    return ImageFont.load_default(size)


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text, cut with dots where it is wider than the width in pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """The text in lines no wider than the width in pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(_fitted(word, font, width))
    return lines
