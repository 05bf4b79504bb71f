"""The pictures of rows: from their image files, or from the small copies inside the gallery."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..data.images import open_image
from ..utils.errors import NotFound, UserError
from .adding import digest
from .results import Hit

if TYPE_CHECKING:
    from .gallery import Gallery

# A crop of one person is rarely wider than this share of its height.
WIDEST = 1.2
TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
ORIENTATION = 0x0112


def openers(gallery: "Gallery", hits: Sequence[Hit]) -> list[Callable[[], Image.Image]]:
    """Returns a function for each hit that opens its picture.

    It raises UserError if the file is gone or changed, or NotFound if the row is.
    """
    if gallery.metadata.keep == "file_name":
        return [partial(_open_named, hit) for hit in hits]
    _, table = gallery.store.read(["id", "thumbnail"], [hit.id for hit in hits])
    stored = dict(zip(table["id"].to_pylist(), table["thumbnail"].to_pylist(), strict=True))
    return [partial(_open_stored, stored, hit.id) for hit in hits]


def _open_stored(stored: Mapping[str, bytes], id: str) -> Image.Image:
    """Opens the small copy of a row. Raises NotFound if another process has erased the row in the meantime."""
    if id not in stored:
        raise NotFound(f"id {id[:16]}: is not in the gallery")
    return Image.open(io.BytesIO(stored[id])).convert("RGB")


def _open_named(hit: Hit) -> Image.Image:
    """Opens the image file of a row. Raises UserError if it is not the one that was added."""
    name = str(hit.file_name)
    image = open_image(name)
    if digest(name) != hit.id:
        raise UserError(f"{name}: is not the image that was added: restore it, or delete the row and add the new one")
    return image


def check_proportions(source: Any) -> None:
    """Checks that a picture can be a crop of one person.

    Args:
        source (`str`, `os.PathLike` or `PIL.Image.Image`): The picture; of a file the header is read.

    Raises:
        UserError: It is clearly wider than high, like a picture of a scene.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the picture"
    width, height = _size(source)
    if width > WIDEST * height:
        raise UserError(
            f"{name}: is {width} x {height} pixels, wider than a person: it looks like a whole scene, and a gallery "
            "takes crops of one person each: cut the people out first (a detector is another tool), or allow it with "
            "--any_shape true"
        )


def _size(source: Any) -> tuple[int, int]:
    """Returns width and height of a picture as it is shown. An unreadable one is (0, 1): its decoder reports it."""
    if isinstance(source, Image.Image):
        return source.size
    try:
        with Image.open(source) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(ORIENTATION) in TURNED else (width, height)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return 0, 1
