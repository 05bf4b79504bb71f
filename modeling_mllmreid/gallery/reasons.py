"""Reasons for the rows of a search, on demand: the model describes the query and each row, see `text/reasons.py`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..data.images import open_image
from ..retrieval.embeddings import printable
from ..text.reasons import NOTE, Reason, compare_descriptions
from ..utils.errors import UserError
from .pictures import openers
from .query import check_has_photo, query_photos
from .results import Hit

if TYPE_CHECKING:
    from .gallery import Gallery


def reasons(gallery: "Gallery", hits: Sequence[Hit], query: Any, id: str | None = None) -> list[Reason | None]:
    """Describes the query and rows, and states what their descriptions share.

    Args:
        gallery ([`Gallery`]): The gallery.
        hits (`Sequence[Hit]`): N rows.
        query (`str`, `PIL.Image.Image`, or a sequence of them, *optional*): The photos; the first one is described.
        id (`str`, *optional*): A row, instead of photos.

    Returns:
        `list[Reason | None]`: N reasons, with the query first; None for a row whose picture cannot be opened.

    Raises:
        UserError: The query has no photo, a photo is broken, or the model has no language model.
    """
    check_has_photo(query, id, "reasons")
    if not hits:
        return []
    (photo, *_) = query_photos(gallery, query, id, "reasons")
    pictures = [open_image(photo), *map(_opened, openers(gallery, hits))]
    texts = iter(gallery.encoder.describe([picture for picture in pictures if picture is not None]))
    own, *others = [None if picture is None else next(texts) for picture in pictures]
    return [None if other is None else compare_descriptions(own or "", other) for other in others]


def reason_lines(made: Sequence[Reason | None]) -> list[str]:
    """Returns the reasons of the first rows of a search as lines."""
    lines = [f"reasons ({NOTE})"]
    for place, reason in enumerate(made, start=1):
        if reason is None:
            lines.append(f"{place:>4}  its picture is missing, broken or not the one that was added")
            continue
        texts = reason.lines("query", "row") or ["no phrase in either description"]
        lines += [f"{place if number == 0 else '':>4}  {printable(text)}" for number, text in enumerate(texts)]
    return lines


def _opened(open_picture: Any) -> Image.Image | None:
    """Returns the picture of a row, or None."""
    try:
        return open_image(open_picture())
    except UserError:
        return None
