"""Grids of crops: pictures of one size with captions; what lies beyond the threshold is grey, what is chosen framed."""

from collections.abc import Collection, Sequence
from typing import Any

import gradio as gr
from PIL import Image, ImageDraw

from ...gallery.report import verification_lines
from ...gallery.results import Found, Hit, counted
from ...retrieval.sheet import decimals
from ..service import GalleryService

LINE, LINE_COLOR = 6, (196, 60, 40)
FRAME, FRAME_COLOR = 8, (249, 115, 22)
SIZE = (128, 256)
# Share of white in a pale picture.
FADED = 0.45
# Pictures of one grid, at most.
MOST_SHOWN = 50
Captioned = list[tuple[Image.Image, str]]


def grid(label: str, elem_id: str, *, large: bool = False, marks: bool = False) -> Any:
    """Returns an empty grid of crops: large ones, or small ones that can be marked by a click."""
    classes = ["crops", *(["large"] if large else []), *(["marks"] if marks else [])]
    options: dict[str, Any] = {"allow_preview": False, "buttons": [], "interactive": False, "height": "auto"}
    return gr.Gallery(label=label, columns=2 if large else 5, elem_id=elem_id, elem_classes=classes, **options)


def found_pictures(service: GalleryService, found: Found) -> Captioned:
    """Returns the pictures of a search with rank and distance.

    Args:
        service ([`GalleryService`]): The gallery.
        found ([`Found`]): The result.

    Returns:
        `list[tuple[Image.Image, str]]`: Pictures beyond the threshold are grey and pale. A line at the left edge of one
        means that it and all that follow are beyond; verified rows may mix.
    """
    digits = decimals([hit.distance for hit in found.hits])
    drawn = []
    last_within = max((place for place, hit in enumerate(found.hits, start=1) if not hit.beyond), default=0)
    for place, (picture, hit) in enumerate(zip(_pictures(service, found.hits), found.hits, strict=True), start=1):
        if hit.beyond:
            picture = _pale(picture)
            if place == last_within + 1:
                picture.paste(LINE_COLOR, (0, 0, LINE, SIZE[1]))
        words = [f"{place}. {hit.distance:.{digits}f}"]
        words += [] if hit.probability is None else [f"{hit.probability:.1%}"]
        words += [*_known(hit), *(["beyond"] if hit.beyond else [])]
        drawn.append((picture, "\n".join(words)))
    return drawn


def row_pictures(
    service: GalleryService, hits: Sequence[Hit], *, chosen: Collection[str] = (), kept: Collection[str] = ()
) -> Captioned:
    """Returns the pictures of rows with what is known about them, and their distance if there is one.

    Args:
        service ([`GalleryService`]): The gallery.
        hits (`Sequence[Hit]`): The rows.
        chosen (`Collection[str]`): Ids of rows with a frame.
        kept (`Collection[str]`): Ids of rows that are grey and pale, because they are not erased.

    Returns:
        `list[tuple[Image.Image, str]]`
    """
    digits = decimals([hit.distance for hit in hits if hit.distance == hit.distance] or [0])
    drawn = []
    for picture, hit in zip(_pictures(service, hits), hits, strict=True):
        words = [f"{hit.distance:.{digits}f}"] if hit.distance == hit.distance else []
        words += _known(hit)
        if hit.id in chosen:
            ImageDraw.Draw(picture).rectangle((0, 0, SIZE[0] - 1, SIZE[1] - 1), outline=FRAME_COLOR, width=FRAME)
            words.insert(0, "chosen")
        if hit.id in kept:
            picture = _pale(picture)
            words.insert(0, "kept")
        drawn.append((picture, "\n".join(words)))
    return drawn


def verdict(found: Found) -> str:
    """Returns the result of a search in one line, and in others what was verified."""
    lines = [] if found.verification is None else verification_lines(found.verification)
    return "\n".join([_verdict(found), *lines])


def _verdict(found: Found) -> str:
    """Returns the result of a search in one line."""
    if not found.searched:
        return "No row meets the conditions."
    rows, within = counted(found.searched, "row"), sum(not hit.beyond for hit in found.hits)
    if found.threshold is None:
        return f"{len(found.hits)} nearest of {rows}; the model has no threshold."
    value = f"{found.threshold:.{decimals([found.threshold])}f}"
    if found.nobody:
        return f"Nobody: no image of {rows} is within the threshold {value}. The grey ones are others."
    return f"Within the threshold {value}: {within} of the {len(found.hits)} nearest of {rows}."


def _pictures(service: GalleryService, hits: Sequence[Hit]) -> list[Image.Image]:
    """Returns the pictures of rows in one size."""
    return [picture.convert("RGB").resize(SIZE) for picture in service.pictures([hit.id for hit in hits])]


def _pale(picture: Image.Image) -> Image.Image:
    """Returns a picture in grey, mixed with white."""
    return Image.blend(picture.convert("L").convert("RGB"), Image.new("RGB", SIZE, "white"), FADED)


def _known(hit: Hit) -> list[str]:
    """Returns the name, the camera and the time of a row, as far as they are known."""
    known = hit.crop.known()
    words = [str(known["person"])] if "person" in known else []
    words += [f"camera {known['camera_id']}"] if "camera_id" in known else []
    return words + ([f"{known['time']:%Y-%m-%d %H:%M}Z"] if "time" in known else [])
