"""The feature of a query: photos, words, or a row of the gallery."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..utils.errors import NotFound, UserError
from .rows import DIGEST, is_utf8

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
    images = [query] if isinstance(query, str | os.PathLike | Image.Image) else list(query)
    features = gallery.encoder.encode(images)
    mean: np.ndarray = features.mean(0) if len(features) > 1 else features[0]
    return mean
