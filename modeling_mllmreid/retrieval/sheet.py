"""Ranked sheets: a PNG with each query and its nearest gallery images; matches are green, other people red."""

import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..data.images import open_image
from ..model.images import to_rgb
from ..utils.errors import UserError
from ..utils.outputs import atomic_file, png_info
from ..utils.tensors import is_tensor
from .embeddings import CONTROLS, SURROGATES
from .exact import Ranking
from .matching import Ids, SamePerson

ImageSource = Image.Image | str | os.PathLike[str] | Callable[[], Image.Image]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

CROP = (96, 192)
FRAME, GAP, MARGIN, CAPTION, QUERY_GAP, HEADER = 5, 10, 24, 52, 30, 84
PAPER, INK, FAINT, QUERY, NEUTRAL, BLANK = "#ffffff", "#1c2430", "#6b7480", "#2b5fa8", "#b9c0c9", "#f4f7fb"
HIT, MISS, LIMIT = "#1f9d45", "#d2322d", "#8a3ffc"
COLUMN_STEP, ROW_STEP = CROP[0] + 2 * FRAME + GAP, CROP[1] + 2 * FRAME + CAPTION + GAP
FIRST_COLUMN = MARGIN + CROP[0] + 2 * FRAME + QUERY_GAP
# A larger picture is too large for viewers.
MAX_COLUMNS, MAX_ROWS = 20, 30


class _Split(NamedTuple):
    """The images of the queries or of the gallery, with their labels."""

    images: Sequence[ImageSource | None]
    person_ids: Ids | None
    camera_ids: Ids | None
    titles: Sequence[str] | None


class _Limit(NamedTuple):
    """A threshold, and which images of the ranking are within it, (Q, k) bool."""

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
    """Draws a PNG with one row per query: the query, then its nearest gallery images with their distances.

    With person ids for queries and gallery, matches have green frames and other people red ones. Below a gallery image
    stand its distance, its person if ids are names, its camera if it is known, and its title. Crops are fitted into
    96 x 192 pixels without cutting. At most 20 columns and 30 rows are drawn; the header reports it if there are more.

    Args:
        path_png (`str` or `os.PathLike`): the file to write.
        query_images (`Sequence`): Q PIL images, paths, or functions that return an image; `None` for a text query.
        gallery_images (`Sequence`): G PIL images, paths, or functions that return an image. Only images on the sheet
            are opened; one that cannot be opened is drawn as a blank with its name.
        ranking (`Ranking`): the result of `rank_gallery` for these queries and this gallery. A distance of NaN is not
            drawn.
        query_person_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`, *optional*): (Q,) person ids.
        gallery_person_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`, *optional*): (G,) person ids.
        query_camera_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`, *optional*): (Q,) camera ids; -1 is unknown.
        gallery_camera_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`, *optional*): (G,) camera ids.
        title (`str`, defaults to `"Nearest gallery images"`): title of the sheet.
        query_titles (`Sequence[str]`, *optional*): Q captions; for a text query, its text.
        gallery_titles (`Sequence[str]`, *optional*): G captions; of a path only the file name is drawn.
        columns (`int`, defaults to 10): gallery images per query.
        threshold (`float`, *optional*): largest distance of an accepted image. Images beyond it are grey, a line marks
            it, and the title reports how many images are within it.
        distance_name (`str`, defaults to `"cosine distance"`): name of the distance, for the header.

    Returns:
        Nothing.

    Raises:
        UserError: if images, ids or titles do not fit the ranking, or a query image cannot be opened.

    Example:
        >>> import os, tempfile
        >>> import numpy as np
        >>> from PIL import Image
        >>> from modeling_mllmreid import rank_gallery, ranked_sheet
        >>> images = [Image.new("RGB", (64, 128), color) for color in ("red", "green", "blue")]
        >>> features = np.eye(3, dtype=np.float32)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "sheet.png")
        ...     ranked_sheet(path, images[:1], images, rank_gallery(features[:1], features, k=3))
        ...     Image.open(path).size
        (522, 362)
    """
    query = _Split(query_images, query_person_ids, query_camera_ids, query_titles)
    gallery = _Split(gallery_images, gallery_person_ids, gallery_camera_ids, gallery_titles)
    _check_inputs(query, gallery, ranking)
    rule = None
    if query_person_ids is not None and gallery_person_ids is not None:
        rule = SamePerson(query_person_ids, gallery_person_ids)
    limit = None if threshold is None else _Limit(threshold, _within(ranking.distances, threshold))
    available = min(columns, ranking.indices.shape[1])
    columns, rows = min(available, MAX_COLUMNS), min(len(query_images), MAX_ROWS)
    notes = [distance_name] if np.isfinite(ranking.distances).any() else []
    notes += [f"the first {columns} of {available:,} columns"] if columns < available else []
    notes += [f"the first {rows} of {len(query_images):,} rows"] if rows < len(query_images) else []
    if limit is not None:
        title, notes = _headline(ranking, limit), [title, *notes]
    width = max(FIRST_COLUMN + columns * COLUMN_STEP - GAP, MARGIN + 460) + MARGIN
    sheet = Image.new("RGB", (width, HEADER + rows * ROW_STEP + MARGIN - GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    legend = [(HIT, "same person"), (MISS, "another person")] if rule is not None else []
    legend += [(LIMIT, "threshold")] if limit is not None else []
    _draw_header(draw, width, columns, title, "; ".join(notes), legend)
    for row in range(rows):
        _draw_query(sheet, draw, row, query, ranking, limit)
        _draw_results(sheet, draw, row, gallery, ranking, columns, rule, limit)
    with atomic_file(path_png) as temporary:
        sheet.save(temporary, format="PNG", optimize=True, pnginfo=png_info())


def _check_inputs(query: _Split, gallery: _Split, ranking: Ranking) -> None:
    """Raises UserError if images, ids or titles do not fit the ranking."""
    for prefix, split, count, items in (
        ("query", query, len(ranking.indices), "queries in the ranking"),
        ("gallery", gallery, len(gallery.images), "gallery images"),
    ):
        for name, values in split._asdict().items():
            if values is not None and len(values) != count:
                raise UserError(f"{prefix}_{name}: {len(values)} for {count} {items}: give one for each")
    largest = int(ranking.indices.max(initial=-1))
    if largest >= len(gallery.images):
        raise UserError(
            f"gallery_images: {len(gallery.images)}, but the ranking names image {largest}: give the ranking's gallery"
        )


def _draw_query(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, row: int, query: _Split, ranking: Ranking, limit: _Limit | None
) -> None:
    """Draws the query of a row with its caption, or its title in place of an image."""
    position, source = (MARGIN, HEADER + row * ROW_STEP), query.images[row]
    title = query.titles[row] if query.titles is not None else f"query {row + 1}"
    _draw_crop(sheet, draw, position, None if source is None else _open_query(source), QUERY, title)
    captions = [title] if source is not None else []
    captions += [", ".join(_person_and_camera(query, row))]
    captions += [_count_within(ranking, limit, row)] if limit is not None and len(query.images) > 1 else []
    # A query's caption has free space on both sides.
    _draw_caption(draw, position, captions, beyond=MARGIN - 4)


def _draw_results(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    row: int,
    gallery: _Split,
    ranking: Ranking,
    columns: int,
    rule: SamePerson | None,
    limit: _Limit | None,
) -> None:
    """Draws the nearest gallery images of a row's query, and the line of the threshold."""
    top = HEADER + row * ROW_STEP
    digits = decimals(ranking.distances[row], least=3)
    for column in range(columns):
        index = int(ranking.indices[row, column])
        if index < 0:
            break
        color = NEUTRAL
        if rule is not None:
            color = HIT if rule.query_persons[row] == rule.gallery_persons[index] else MISS
        position, faded = (
            (FIRST_COLUMN + column * COLUMN_STEP, top),
            limit is not None and not limit.within[row, column],
        )
        title = "" if gallery.titles is None else gallery.titles[index].rpartition("/")[2]
        image, problem = _open_result(gallery.images[index], title)
        _draw_crop(sheet, draw, position, image, color, problem, faded=faded)
        value = float(ranking.distances[row, column])
        distance = "" if math.isnan(value) else f"{max(value, 0.0):.{digits}f}"
        captions = [distance, ", ".join(_person_and_camera(gallery, index)), title]
        _draw_caption(draw, position, captions, faded=faded)
    if limit is not None and limit.within[row, :columns].sum() < np.isfinite(ranking.distances[row, :columns]).sum():
        # Images are sorted by distance: those within the threshold come first.
        _draw_line(draw, FIRST_COLUMN + int(limit.within[row].sum()) * COLUMN_STEP - GAP // 2, top)


def decimals(distances: Sequence[float] | np.ndarray, least: int = 4) -> int:
    """Chooses the number of decimals for distances.

    Args:
        distances (`Sequence[float]` or `np.ndarray`): (k,) distances; infinite ones are ignored.
        least (`int`, defaults to 4): the fewest decimals.

    Returns:
        `int`: `least`, or more if all distances are small, as those of features in a narrow cone.
    """
    finite = [float(distance) for distance in distances if math.isfinite(distance)]
    largest = max(finite, default=0.0)
    if largest <= 0 or largest >= 5 * 10.0**-least:
        return least
    return 2 - math.floor(math.log10(largest))


def verdict(distances: np.ndarray, threshold: float) -> str:
    """Reports how many distances (k,) are within a threshold, such as "3 of 10 within the threshold 0.2500"."""
    count, within = int(np.isfinite(distances).sum()), int(_within(distances, threshold).sum())
    value = f"the threshold {threshold:.{decimals([threshold])}f}"
    return f"{within} of {count:,} within {value}" if within else f"nobody within {value}"


def _within(distances: np.ndarray, threshold: float) -> np.ndarray:
    """Returns which distances are within the threshold, bool; infinite ones are not."""
    within: np.ndarray = np.isfinite(distances) & (distances <= threshold)
    return within


def _headline(ranking: Ranking, limit: _Limit) -> str:
    """Formats how many queries have an image within the threshold, as the title of a sheet."""
    if len(ranking.distances) == 1:
        return verdict(ranking.distances[0], limit.threshold)
    count = int(limit.within.any(1).sum())
    value = f"{limit.threshold:.{decimals([limit.threshold])}f}"
    return f"{count or 'none'} of {len(ranking.distances):,} queries find somebody within the threshold {value}"


def _count_within(ranking: Ranking, limit: _Limit, row: int) -> str:
    """Formats how many images of one query are within the threshold."""
    count = int(np.isfinite(ranking.distances[row]).sum())
    within = int(limit.within[row].sum())
    return f"{within} of {count:,} within" if within else "nobody within"


def _draw_header(
    draw: ImageDraw.ImageDraw,
    width: int,
    columns: int,
    title: str,
    notes: str,
    legend: Sequence[tuple[str, str]],
) -> None:
    """Draws the title, the notes below it, the legend of the colours, and the ranks above the columns."""
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
    for column in range(columns):
        center = FIRST_COLUMN + column * COLUMN_STEP + FRAME + CROP[0] // 2
        draw.text((center, HEADER - 12), str(column + 1), fill=FAINT, font=_font(12), anchor="mm")
    draw.text((MARGIN + FRAME + CROP[0] // 2, HEADER - 12), "query", fill=QUERY, font=_font(12), anchor="mm")


def _draw_crop(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    position: tuple[int, int],
    image: Image.Image | None,
    color: str,
    text: str,
    faded: bool = False,
) -> None:
    """Draws an image fitted into its frame, grey if it is faded; without an image, draws the text."""
    left, top = position
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
    draw: ImageDraw.ImageDraw, position: tuple[int, int], lines: Sequence[str], beyond: int = 0, faded: bool = False
) -> None:
    """Draws centred lines below a crop, at most `beyond` pixels wider than its frame on each side; skips empty ones."""
    center, top = position[0] + FRAME + CROP[0] // 2, position[1] + CROP[1] + 2 * FRAME + 10
    for number, line in enumerate(filter(None, lines)):
        text = _fitted(line, _font(12), CROP[0] + 2 * FRAME + 2 * beyond, keep_end=number > 0)
        ink = FAINT if number or faded else INK
        draw.text((center, top + 15 * number), text, fill=ink, font=_font(12), anchor="mm")


def _draw_line(draw: ImageDraw.ImageDraw, x: int, top: int) -> None:
    """Draws the vertical line of the threshold."""
    draw.rectangle((x - 1, top - 3, x + 1, top + CROP[1] + 2 * FRAME + 2), fill=LIMIT)


def _open(source: ImageSource) -> Image.Image:
    """Opens an image as RGB, upright. Raises UserError if it cannot be opened."""
    if isinstance(source, str | os.PathLike):
        return open_image(source)
    image: Image.Image = to_rgb(source if isinstance(source, Image.Image) else source())
    return image


def _open_query(source: ImageSource) -> Image.Image:
    """Opens a query's image. Raises UserError, naming it, if it cannot be opened."""
    try:
        return _open(source)
    except UserError as error:
        name = os.fspath(source) if isinstance(source, str | os.PathLike) else "query"
        raise UserError(f"{name}: not readable as an image ({str(error).removeprefix(f'{name}: ')})") from error


def _open_result(source: ImageSource | None, title: str) -> tuple[Image.Image | None, str]:
    """Opens a gallery image; if that fails, returns None and the text to draw: its name and the reason."""
    try:
        return _open(source), ""  # type: ignore[arg-type]
    except UserError as error:
        name = title or (os.path.basename(source) if isinstance(source, str | os.PathLike) else "")
        # Messages begin with a name and end with the fix.
        reason = str(error).split(": ")[1:2] or [str(error)]
        return None, f"{name} {reason[0]}".strip()


def _person_and_camera(split: _Split, index: int) -> list[str]:
    """Returns an image's person, if ids are names, and its camera, if it is known."""
    person, camera = _plain_id(split.person_ids, index), _plain_id(split.camera_ids, index)
    names = [person] if isinstance(person, str) and person != "-1" else []
    if camera not in (None, -1, "-1", ""):
        names.append(camera if isinstance(camera, str) else f"cam {camera}")
    return list(filter(None, names))


def _plain_id(ids: Ids | None, index: int) -> str | int | None:
    """Returns an id as a plain string or integer."""
    if ids is None:
        return None
    value = ids[index]
    value = value.item() if isinstance(value, np.generic) or is_tensor(value) else value
    return value if isinstance(value, str) else int(value)


def _font(size: int) -> Font:
    """Returns Pillow's own font, so that a sheet looks the same on every machine."""
    return ImageFont.load_default(size)


def _fitted(text: str, font: Font, width: float, keep_end: bool = False) -> str:
    """Shortens the text to one line of this width in pixels, with dots at its end or in its middle."""
    text = _drawable(text)
    short, kept = text, min(len(text), 200)  # the widest sheet has room for fewer letters
    while kept and font.getlength(short) > width:
        kept -= 1
        after = kept // 2 if keep_end else 0
        short = f"{text[: kept - after]}...{text[len(text) - after :]}"
    return short


def _wrapped(text: str, font: Font, width: float) -> list[str]:
    """Breaks the text into lines of at most this width in pixels, between words and inside long words."""
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
    """Returns the text as one line that a font can draw, at most 1000 characters."""
    return SURROGATES.sub("?", CONTROLS.sub(" ", text))[:1000]
