"""What a form of the page holds: uploaded files as photos, texts as conditions."""

from collections.abc import Sequence
from pathlib import Path

from ..gallery.filters import Where
from ..utils.errors import UserError
from .service import PHOTO_BYTES, Photo


def uploaded_photos(files: str | Sequence[str] | None, any_shape: bool = False) -> list[Photo]:
    """Reads uploaded files.

    Args:
        files (`str` or `Sequence[str]`, *optional*): Their paths.
        any_shape (`bool`): Whether they may be wider than a person.

    Returns:
        `list[Photo]`
    """
    photos = []
    for name in [files] if isinstance(files, str) else files or []:
        with open(name, "rb") as file:
            photos.append(Photo(file.read(PHOTO_BYTES + 1), Path(name).name, any_shape))
    return photos


def typed_conditions(cameras: str | None, since: str | None, until: str | None, conditions: str | None) -> Where:
    """Reads conditions that were typed.

    Args:
        cameras (`str`, *optional*): Numbers, with commas or spaces between them.
        since (`str`, *optional*): A time with its zone.
        until (`str`, *optional*): A time with its zone.
        conditions (`str`, *optional*): `column=value`, with commas between them.

    Returns:
        [`Where`]

    Raises:
        UserError: A text is not valid.
    """
    cameras, since, until, conditions = (text or "" for text in (cameras, since, until, conditions))
    try:
        numbers = [int(part) for part in cameras.replace(",", " ").split()]
    except ValueError:
        raise UserError(f"cameras {cameras[:40]!r}: give numbers, such as 1, 3") from None
    parts = [part.strip() for part in conditions.split(",") if part.strip()]
    return Where(numbers, since.strip() or None, until.strip() or None, parts)
