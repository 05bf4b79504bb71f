"""Ranked sheets: a PNG with each query and its nearest gallery images, hits framed green and misses red."""

import math
import os
from collections.abc import Callable, Mapping, Sequence, Sized
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from ..data.images import open_image
from ..model.images import to_rgb
from ..utils.errors import UserError
from ..utils.outputs import atomic_file, png_info
from .embeddings import CONTROLS, SURROGATES
from .matching import Ids, SamePerson
from .ranking import Ranking

ImageSource = Image.Image | str | os.PathLike[str] | Callable[[], Image.Image]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

CROP = (96, 192)
FRAME, GAP, MARGIN, CAPTION, QUERY_GAP, HEADER = 5, 10, 24, 52, 30, 84
PAPER, INK, FAINT, QUERY, NEUTRAL, BLANK = "#ffffff", "#1c2430", "#6b7480", "#2b5fa8", "#b9c0c9", "#f4f7fb"
HIT, MISS, LIMIT = "#1f9d45", "#d2322d", "#8a3ffc"
# More would make a picture that nothing can show.
MAX_COLUMNS, MAX_ROWS = 20, 30


class _Limit(NamedTuple):
    """A threshold, and for each row of the ranking which of its images are within it, (Q, k) bool."""

    threshold: float
    within: np.ndarray


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
    gallery_titles: Sequence[str] | None = None,
    columns: int = 10,
    threshold: float | None = None,
    distance_name: str = "cosine distance",
) -> None:
    """Draws one row per query of the ranking: the query, then its first `columns` images, each with its distance.

    Images are PIL images, paths, or functions that return an image; gallery images are opened only where drawn, and one
    that cannot be opened is a blank with its name. A query image may be None (search by text): its title is then
    written in its place; otherwise the title is its caption. With person ids on both sides hits are framed green and
    misses red; without, frames are neutral (search). Under a gallery image stand its distance, its person where ids
    are names, its camera where it is known, and its title, of a path the last name. threshold: images beyond it
    are grey, a line stands where it lies, and the title says how many are within. Any image size; crops are fitted into
    96 x 192 pixels, never cut. At most 20 columns and 30 rows are drawn, which the header says.
    Raises UserError where images, ids or titles do not fit the ranking, and for a query that cannot be opened.
    """
    of_queries = {
        "query_images": query_images,
        "query_person_ids": query_person_ids,
        "query_camera_ids": query_camera_ids,
        "query_titles": query_titles,
    }
    of_gallery = {
        "gallery_person_ids": gallery_person_ids,
        "gallery_camera_ids": gallery_camera_ids,
        "gallery_titles": gallery_titles,
    }
    _check_count(of_queries, len(ranking.indices), "queries in the ranking")
    _check_count(of_gallery, len(gallery_images), "gallery images")
    largest = int(ranking.indices.max(initial=-1))
    if largest >= len(gallery_images):
        raise UserError(
            f"gallery_images: {len(gallery_images)}, but the ranking names image {largest}: give the gallery it ranks"
        )
    rule = None
    if query_person_ids is not None and gallery_person_ids is not None:
        rule = SamePerson(query_person_ids, gallery_person_ids)
    limit = None if threshold is None else _Limit(threshold, _within(ranking.distances, threshold))
    wanted = min(columns, ranking.indices.shape[1])
    shown, rows = min(wanted, MAX_COLUMNS), min(len(query_images), MAX_ROWS)
    notes = [distance_name]
    notes += [f"the first {shown} of {wanted:,} columns"] if shown < wanted else []
    notes += [f"the first {rows} of {len(query_images):,} rows"] if rows < len(query_images) else []
    if limit is not None:
        title, notes = _headline(ranking, limit), [title, *notes]
    step, row_height = CROP[0] + 2 * FRAME + GAP, CROP[1] + 2 * FRAME + CAPTION
    first = MARGIN + CROP[0] + 2 * FRAME + QUERY_GAP
    width = max(first + shown * step - GAP, MARGIN + 460) + MARGIN
    sheet = Image.new("RGB", (width, HEADER + rows * (row_height + GAP) + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    legend = [(HIT, "same person"), (MISS, "another person")] if rule is not None else []
    legend += [(LIMIT, "threshold")] if limit is not None else []
    _draw_header(draw, width, first, shown, step, title, "; ".join(notes), legend)

    for row, source in enumerate(query_images[:rows]):
        top = HEADER + row * (row_height + GAP)
        name = query_titles[row] if query_titles is not None else f"query {row + 1}"
        image = None if source is None else _query(source)
        _draw_crop(sheet, draw, (MARGIN, top), image, QUERY, name)
        captions = [name] if source is not None else []
        captions += [", ".join(_who(query_person_ids, query_camera_ids, row))]
        captions += [_count_within(ranking, limit, row)] if limit is not None and len(query_images) > 1 else []
        # Nothing stands next to a query's caption: it may reach into the margins, and says more than a camera.
        _draw_caption(draw, (MARGIN, top), captions, beyond=MARGIN - 4)
        places = decimals(ranking.distances[row], least=3)
        for column in range(shown):
            index = int(ranking.indices[row, column])
            if index < 0:
                break
            place = (first + column * step, top)
            color = NEUTRAL
            if rule is not None:
                color = HIT if rule.query_persons[row] == rule.gallery_persons[index] else MISS
            title_of = "" if gallery_titles is None else gallery_titles[index].rpartition("/")[2]
            try:
                image, missing = _opened(gallery_images[index]), ""
            except UserError as error:
                image, missing = None, _fault(gallery_images[index], title_of, error)
            faded = limit is not None and not limit.within[row, column]
            _draw_crop(sheet, draw, place, image, color, missing, faded=faded)
            who = _who(gallery_person_ids, gallery_camera_ids, index)
            distance = f"{max(float(ranking.distances[row, column]), 0.0):.{places}f}"
            _draw_caption(draw, place, [distance, ", ".join(who), title_of], faded=faded)
        if limit is not None and limit.within[row, :shown].sum() < np.isfinite(ranking.distances[row, :shown]).sum():
            # The images are nearest first: those within the threshold stand before the line.
            _draw_line(draw, first + int(limit.within[row].sum()) * step - GAP // 2, top)
    with atomic_file(path_png) as aside:
        sheet.save(aside, format="PNG", optimize=True, pnginfo=png_info())


def decimals(distances: Sequence[float] | np.ndarray, least: int = 4) -> int:
    """How many decimals show these distances: `least`, or more where all of them are small, as in a narrow cone."""
    finite = [float(distance) for distance in distances if math.isfinite(distance)]
    largest = max(finite, default=0.0)
    if largest <= 0 or largest >= 5 * 10.0**-least:
        return least
    return 2 - math.floor(math.log10(largest))


def verdict(distances: np.ndarray, threshold: float) -> str:
    """How many of the images at these distances (k,) are within the threshold, in words."""
    count, within = int(np.isfinite(distances).sum()), int(_within(distances, threshold).sum())
    value = f"the threshold {threshold:.{decimals([threshold])}f}"
    return f"{within} of {count:,} within {value}" if within else f"nobody within {value}"


def _within(distances: np.ndarray, threshold: float) -> np.ndarray:
    """Which distances are within the threshold; infinity, of a short row, is not."""
    return np.isfinite(distances) & (distances <= threshold)


def _headline(ranking: Ranking, limit: _Limit) -> str:
    """What the threshold says of all queries."""
    if len(ranking.distances) == 1:
        return verdict(ranking.distances[0], limit.threshold)
    found = int(limit.within.any(1).sum())
    value = f"{limit.threshold:.{decimals([limit.threshold])}f}"
    return f"{found or 'none'} of {len(ranking.distances):,} queries find somebody within the threshold {value}"


def _count_within(ranking: Ranking, limit: _Limit, row: int) -> str:
    """What the threshold says of one query among several."""
    count = int(np.isfinite(ranking.distances[row]).sum())
    within = int(limit.within[row].sum())
    return f"{within} of {count:,} within" if within else "nobody within"


def _check_count(values: Mapping[str, Sized | None], count: int, what: str) -> None:
    """Every given value must have one entry for each of the counted things."""
    for name, value in values.items():
        if value is not None and len(value) != count:
            raise UserError(f"{name}: {len(value)} for {count} {what}: give one for each")


def _draw_header(
    draw: ImageDraw.ImageDraw,
    width: int,
    first: int,
    shown: int,
    step: int,
    title: str,
    notes: str,
    legend: Sequence[tuple[str, str]],
) -> None:
    """The title, what is below it, the legend of the colours, and the ranks over the columns."""
    right = width - MARGIN
    for color, text in reversed(legend):
        right -= round(_font(13).getlength(text))
        draw.text((right, 22), text, fill=INK, font=_font(13), anchor="lm")
        right -= 18
        draw.rectangle(
            (right + (4 if color == LIMIT else 0), 16, right + (6 if color == LIMIT else 11), 27),
            outline=color,
            width=3,
        )
        right -= 16
    draw.text((MARGIN, 22), _fitted(title, _font(18), right - MARGIN), fill=INK, font=_font(18), anchor="lm")
    draw.text((MARGIN, 45), _fitted(notes, _font(13), width - 2 * MARGIN), fill=FAINT, font=_font(13), anchor="lm")
    for column in range(shown):
        center = first + column * step + FRAME + CROP[0] // 2
        draw.text((center, HEADER - 12), str(column + 1), fill=FAINT, font=_font(12), anchor="mm")
    draw.text((MARGIN + FRAME + CROP[0] // 2, HEADER - 12), "query", fill=QUERY, font=_font(12), anchor="mm")


def _draw_crop(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    image: Image.Image | None,
    color: str,
    text: str,
    faded: bool = False,
) -> None:
    """A crop fitted into its frame, grey where it is faded, or without an image the text in its place."""
    left, top = place
    draw.rectangle((left, top, left + CROP[0] + 2 * FRAME - 1, top + CROP[1] + 2 * FRAME - 1), fill=color)
    inside = (left + FRAME, top + FRAME)
    if image is not None:
        crop = ImageOps.pad(image, CROP, method=Image.Resampling.BICUBIC, color="#eceff3")
        if faded:
            crop = Image.blend(ImageOps.grayscale(crop).convert("RGB"), Image.new("RGB", CROP, PAPER), 0.55)
        sheet.paste(crop, inside)
        return
    draw.rectangle((*inside, inside[0] + CROP[0] - 1, inside[1] + CROP[1] - 1), fill=BLANK)
    font = _font(12)
    lines = _wrapped(text, font, CROP[0] - 12)[: (CROP[1] - 12) // 15]
    ink = FAINT if faded else INK
    draw.multiline_text((inside[0] + 6, inside[1] + 6), "\n".join(lines), fill=ink, font=font, spacing=3)


def _draw_caption(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], beyond: int = 0, faded: bool = False
) -> None:
    """Centred lines under a crop, at most so many pixels beyond its frame on both sides; empty ones are skipped."""
    center, top = place[0] + FRAME + CROP[0] // 2, place[1] + CROP[1] + 2 * FRAME + 10
    for number, line in enumerate(filter(None, lines)):
        text = _fitted(line, _font(12), CROP[0] + 2 * FRAME + 2 * beyond, keep_end=number > 0)
        ink = FAINT if number or faded else INK
        draw.text((center, top + 15 * number), text, fill=ink, font=_font(12), anchor="mm")


def _draw_line(draw: ImageDraw.ImageDraw, at: int, top: int) -> None:
    """The line where the threshold lies, before the image at whose left it stands."""
    draw.rectangle((at - 1, top - 3, at + 1, top + CROP[1] + 2 * FRAME + 2), fill=LIMIT)


def _opened(source: ImageSource) -> Image.Image:
    """The image as RGB, upright, whatever gives it. Raises UserError where it cannot be opened."""
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if callable(source):
        return to_rgb(source())
    return open_image(source)


def _query(source: ImageSource) -> Image.Image:
    """A query's image, which must be there. Raises UserError where it cannot be opened."""
    try:
        return _opened(source)
    except UserError as error:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "query"
        raise UserError(f"{name}: not readable as an image ({str(error).removeprefix(f'{name}: ')})") from error


def _fault(source: ImageSource, title: str, error: UserError) -> str:
    """What stands in the place of a gallery image that cannot be opened: its name and what is wrong with it."""
    name = title or (os.path.basename(source) if isinstance(source, str | os.PathLike) else "")
    # Messages begin with a name and end with the remedy.
    reason = str(error).split(": ")[1:2] or [str(error)]
    return f"{name} {reason[0]}".strip()


def _who(persons: Ids | None, cameras: Ids | None, row: int) -> list[str]:
    """The person, where ids are names, and the camera, where it is given and known: -1 is not."""
    person, camera = _value(persons, row), _value(cameras, row)
    names = [person] if isinstance(person, str) and person != "-1" else []
    if camera not in (None, -1, "-1", ""):
        names.append(camera if isinstance(camera, str) else f"cam {camera}")
    return list(filter(None, names))


def _value(ids: Ids | None, row: int) -> str | int | None:
    """One id as a plain string or integer, whatever holds it."""
    if ids is None:
        return None
    value = ids[row]
    value = value.item() if isinstance(value, np.generic | Tensor) else value
    return value if isinstance(value, str) else int(value)


def _font(size: int) -> Font:
    """Pillow's own font, so that a sheet looks the same on every machine."""
    return ImageFont.load_default(size)


def _fitted(text: str, font: Font, width: float, keep_end: bool = False) -> str:
    """The text in one line, with dots where it is wider than the width in pixels: at its end, or in its middle."""
    text = _drawable(text)
    short, kept = text, min(len(text), 200)  # as many letters as the widest sheet has room for
    while kept and font.getlength(short) > width:
        kept -= 1
        after = kept // 2 if keep_end else 0
        short = f"{text[: kept - after]}...{text[len(text) - after :]}"
    return short


def _wrapped(text: str, font: Font, width: float) -> list[str]:
    """The text in lines no wider than the width in pixels, broken between words and inside long ones."""
    lines: list[str] = []
    for word in _drawable(text).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def _drawable(text: str) -> str:
    """The text as one line that a font takes, no longer than any sheet is wide."""
    return SURROGATES.sub("?", CONTROLS.sub(" ", text))[:1000]
