"""Verification in a search: the model reads the query and each of the nearest rows together."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.images import open_image
from ..utils.errors import UserError
from .pictures import openers
from .query import check_has_photo, query_photos
from .results import Found, Hit, Verification

if TYPE_CHECKING:
    from .gallery import Gallery

# Of pictures that are decoded at once, unless a single one has more: about 150 small copies.
PIXELS = 5_000_000


def check_verifiable(gallery: "Gallery", query: Any, id: str | None, top: int, rerank: bool) -> None:
    """Raises UserError if a search cannot be verified: it has no photo, or the model does not compare pairs."""
    if top < 1:
        raise UserError(f"verify_top {top}: give 1 or more, or 0 for none")
    if rerank:
        raise UserError("verify_top: and rerank order the same rows: leave one of them out")
    check_has_photo(query, id, "verify_top")
    gallery.encoder.pair_fusion()


def verified(gallery: "Gallery", found: Found, query: Any, id: str | None, top: int) -> Found:
    """Orders the nearest rows of a search by the log odds of their pairs, and gives them their probability.

    The log odds come from the distance of a row and its pair score, see `PairFusion`. With several photos this is the
    mean score: the log odds are linear in it, and the distance is one, that to the mean feature. The probability was
    calibrated with single photos. The odds follow the number of rows that were searched. Of equal log odds, the nearer
    row is first.

    Args:
        gallery ([`Gallery`]): The gallery.
        found ([`Found`]): The rows, nearest first.
        query (`str`, `PIL.Image.Image`, or a sequence of them, *optional*): The photos of one person.
        id (`str`, *optional*): A row, instead of photos: its picture is the photo.
        top (`int`): Number of rows that are verified. Those whose picture cannot be opened follow the others, nearest
            first, without a probability; all rows after them keep their places.

    Returns:
        [`Found`]

    Raises:
        UserError: The model does not compare pairs, or the picture of the row `id` cannot be opened.
    """
    fusion = gallery.encoder.pair_fusion()
    photos = query_photos(gallery, query, id, "verify_top")
    nearest, opened, scores = found.hits[:top], list[int](), [np.empty(0)]
    for places, pictures in _batches(gallery, nearest):
        opened += places
        scores.append(gallery.encoder.pair_scores(photos, pictures).mean(axis=0, dtype=np.float64))
    distances, score = np.array([nearest[place].distance for place in opened]), np.concatenate(scores)
    among = max(found.searched, 1)
    probabilities = fusion.pair_probability(distances, score, among)
    order = np.argsort(-fusion.log_odds(distances, score, among), kind="stable")
    ordered = [replace(nearest[opened[place]], probability=float(probabilities[place])) for place in order]
    unopened = [hit for place, hit in enumerate(nearest) if place not in set(opened)]
    made = Verification(len(ordered), [hit.id for hit in unopened], fusion.top, found.searched)
    return replace(found, hits=[*ordered, *unopened, *found.hits[top:]], verification=made)


def _batches(gallery: "Gallery", hits: Sequence[Hit]) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Yields the pictures of rows with their places, as many as may be decoded at once; not those that do not open."""
    places, pictures, pixels = list[int](), list[Image.Image](), 0
    for place, open_picture in enumerate(openers(gallery, hits)):
        try:
            picture = open_image(open_picture())
        except UserError:
            continue
        size = picture.width * picture.height
        if pictures and pixels + size > PIXELS:
            yield places, pictures
            places, pictures, pixels = [], [], 0
        places.append(place)
        pictures.append(picture)
        pixels += size
    if pictures:
        yield places, pictures
