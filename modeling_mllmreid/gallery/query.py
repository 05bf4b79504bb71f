"""A query: its feature, from photos, words or a row of the gallery, and its photos."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..data.images import open_image
from ..utils.errors import NotFound, UserError
from .pictures import openers
from .results import Hit
from .rows import DIGEST, CropInfo, is_utf8

if TYPE_CHECKING:
    from .gallery import Gallery


def feature_of_query(gallery: "Gallery", query: Any, words: str | None, id: str | None) -> np.ndarray:
    """Returns the feature (D,) of a query; see `Gallery.search`. Several photos have their mean.

    Raises UserError if there is no query or several, the words are no text or an image is broken, and NotFound if the
    row is not there.
    """
    if sum(given is not None for given in (query, words, id)) != 1:
        raise UserError("query: give a photo, words or an id, and only one of them")
    if id is not None:
        _, stored = gallery.store.read(["feature"], [id] if DIGEST.fullmatch(id) else [])
        if not len(stored):
            raise NotFound(f"id {id}: is not in the gallery")
        return np.array(stored["feature"][0].as_py(), np.float32)
    if words is not None:
        if not is_utf8(words):
            raise UserError(f"words {words[:60]!r}: are no UTF-8 text: correct them")
        text: np.ndarray = gallery.encoder.encode_text([words])[0]
        return text
    if isinstance(query, np.ndarray):
        return query
    features = gallery.encoder.encode(_listed(query))
    mean: np.ndarray = features.mean(0) if len(features) > 1 else features[0]
    return mean


def check_has_photo(query: Any, id: str | None, option: str) -> None:
    """Raises UserError if a query has no photo, which an option compares."""
    if id is None and (query is None or isinstance(query, np.ndarray)):
        raise UserError(f"{option}: compares photos, and the query has none: give a photo or an id, or leave it out")


def query_photos(gallery: "Gallery", query: Any, id: str | None, option: str) -> list[Any]:
    """Returns the photos of a query, or the picture of a row. Raises NotFound, with the option, without it."""
    if id is None:
        return _listed(query)
    _, table = gallery.store.read(["file_name"], [id])
    row = Hit(id, 0.0, False, CropInfo(), next(iter(table["file_name"].to_pylist()), None))
    (open_picture,) = openers(gallery, [row])
    try:
        return [open_image(open_picture())]
    except UserError as error:
        # Without its name: the folders of a server are no client's business.
        raise NotFound(
            f"id {id[:16]}: its image file is missing, broken or not the one that was added, and {option} compares "
            f"it: restore it, give a photo, or leave out {option}"
        ) from error


def _listed(query: Any) -> list[Any]:
    """Returns one photo or several as a list."""
    return [query] if isinstance(query, str | os.PathLike | Image.Image) else list(query)
