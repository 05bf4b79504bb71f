"""Pictures of results: what lies beyond the threshold is grey, and a line marks where it begins."""

from PIL import Image

from ..gallery.results import Found, Hit
from ..retrieval.sheet import decimals

LINE, LINE_COLOR = 6, (196, 60, 40)
SIZE = (128, 256)
# Share of white in a picture beyond the threshold.
FADED = 0.45


def result_pictures(pictures: list[Image.Image], hits: list[Hit]) -> list[Image.Image]:
    """Draws the pictures of hits in one size.

    Args:
        pictures (`list[Image.Image]`): N pictures.
        hits (`list[Hit]`): N hits, nearest first.

    Returns:
        `list[Image.Image]`: 128 x 256 pixels each. Those beyond the threshold are grey and pale; the first of them has
        a line at its left edge.
    """
    drawn = []
    for place, (picture, hit) in enumerate(zip(pictures, hits, strict=True)):
        image = picture.convert("RGB").resize(SIZE)
        if hit.beyond:
            image = Image.blend(image.convert("L").convert("RGB"), Image.new("RGB", SIZE, "white"), FADED)
            if place == 0 or not hits[place - 1].beyond:
                image.paste(LINE_COLOR, (0, 0, LINE, SIZE[1]))
        drawn.append(image)
    return drawn


def verdict(found: Found) -> str:
    """Returns the result of a search in one line."""
    if not found.searched:
        return "No row meets the conditions."
    within = sum(not hit.beyond for hit in found.hits)
    if found.threshold is None:
        return f"{len(found.hits)} nearest of {found.searched:,} rows; the model has no threshold."
    value = f"{found.threshold:.{decimals([found.threshold])}f}"
    if found.nobody:
        return f"Nobody: no image of {found.searched:,} rows is within the threshold {value}. The grey ones are others."
    return f"Within the threshold {value}: {within} of the {len(found.hits)} nearest of {found.searched:,} rows."


def caption(hit: Hit, place: int, places: int) -> str:
    """Returns the caption of a hit: rank, distance, and what is known."""
    known = {name: value for name, value in hit.crop.known().items() if name in ("person", "camera_id")}
    parts = [f"{place}. {hit.distance:.{places}f}", *(f"{name.removesuffix('_id')} {known[name]}" for name in known)]
    return ", ".join(parts) + (" (beyond)" if hit.beyond else "")
