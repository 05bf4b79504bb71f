"""The rows that show the person on a photo. A human looks at them before they are erased."""

from typing import Any

from ..retrieval.scan import Scan
from ..utils.errors import UserError
from .filters import Where
from .gallery import EVERYTHING, Gallery, Limit
from .results import Hit, hit_of

# Rows beyond the threshold that are shown next to those within it: the person may be on them too.
BEYOND = 5


def rows_of_person(
    gallery: Gallery, photos: Any, where: Where = EVERYTHING, threshold: Limit = "model"
) -> tuple[list[Hit], list[Hit]]:
    """Finds all rows within the threshold of a person. Expired rows are found too, as they are still on disk.

    Args:
        gallery ([`Gallery`]): The gallery.
        photos (`Any`): One photo or several of one person, as in `Gallery.search`.
        where ([`Where`]): Which rows are searched.
        threshold (`float`, *optional*): The largest cosine distance; by default that of the model.

    Returns:
        `tuple[list[Hit], list[Hit]]`: The rows within the threshold, and the `BEYOND` nearest ones beyond it. In both
            the nearest come first.

    Raises:
        UserError: There is no threshold, or a photo cannot be used.
    """
    limit = gallery.encoder.threshold() if threshold == "model" else threshold
    if limit is None:
        raise UserError("delete: the model has no threshold: give the largest distance as threshold")
    feature, rows = gallery.query_feature(photos), gallery.rows()
    ((places, distances),) = Scan.of(rows.features).nearest(feature[None], where.mask(rows), max(len(rows), 1))
    within = int((distances <= limit).sum())
    nearest = list(zip(places, distances, strict=True))[: within + BEYOND]
    hits = [hit_of(rows, int(place), distance, limit) for place, distance in nearest]
    return hits[:within], hits[within:]
