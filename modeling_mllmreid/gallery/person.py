"""The rows that show the person on a photo. A human looks at them before they are erased."""

from typing import Any

from ..utils.errors import UserError
from .filters import Where
from .gallery import EVERYTHING, Gallery, Limit
from .results import Hit


def rows_of_person(gallery: Gallery, photos: Any, where: Where = EVERYTHING, threshold: Limit = "model") -> list[Hit]:
    """Finds all rows within the threshold of a person.

    Args:
        gallery ([`Gallery`]): The gallery.
        photos (`Any`): One photo or several of one person, as in `Gallery.search`.
        where ([`Where`]): Which rows are searched.
        threshold (`float`, *optional*): The largest cosine distance; by default that of the model.

    Returns:
        `list[Hit]`: The nearest first.

    Raises:
        UserError: There is no threshold, or a photo cannot be used.
    """
    found = gallery.search(photos, max(len(gallery.rows()), 1), where=where, threshold=threshold)
    if found.threshold is None:
        raise UserError("delete: the model has no threshold: give the largest distance as threshold")
    return [hit for hit in found.hits if not hit.beyond]
