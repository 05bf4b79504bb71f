"""What the forms of the page share: uploads as photos, texts as conditions, what was clicked, refusals, the user."""

import html
import re
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr

from ...gallery.filters import Where
from ...utils.errors import UserError
from ..service import PHOTO_BYTES, Photo

# How long the server keeps uploads, and what was found with them.
KEPT_SECONDS = 1800
# A comma that ends a condition: another column follows.
NEXT_CONDITION = re.compile(r",(?=[\s,]*\w+=)")
T = TypeVar("T")


def photos_field(elem_id: str) -> gr.File:
    """Returns a field for photos of one person."""
    return gr.File(
        label="Photos of one person", file_count="multiple", file_types=["image"], height=150, elem_id=elem_id
    )


def uploaded_photos(files: str | Sequence[str] | None, any_shape: bool = False) -> list[Photo]:
    """Reads uploaded files.

    Args:
        files (`str` or `Sequence[str]`, *optional*): Their paths.
        any_shape (`bool`): Whether they may be wider than a person.

    Returns:
        `list[Photo]`

    Raises:
        UserError: A file was removed in the meantime.
    """
    photos = []
    for name in [files] if isinstance(files, str) else files or []:
        try:
            with open(name, "rb") as file:
                photos.append(Photo(file.read(PHOTO_BYTES + 1), Path(name).name, any_shape))
        except FileNotFoundError:
            raise UserError(f"{Path(name).name}: is kept for half an hour and is gone: upload it again") from None
    return photos


def typed_conditions(
    cameras: str | None, since: str | None = None, until: str | None = None, conditions: str | None = None
) -> Where:
    """Reads conditions that were typed.

    Args:
        cameras (`str`, *optional*): Numbers, with commas or spaces between them.
        since (`str`, *optional*): A time with its zone.
        until (`str`, *optional*): A time with its zone.
        conditions (`str`, *optional*): `column=value`, with commas between them. A value may hold commas, too.

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
    parts = [part.strip() for part in NEXT_CONDITION.split(conditions.strip(" ,")) if part.strip()]
    return Where(numbers, since.strip() or None, until.strip() or None, parts)


def listed(values: Sequence[T], place: int) -> T:
    """Returns what was clicked in a list. Raises UserError if the server does not keep the list any more."""
    if not 0 <= place < len(values):
        raise UserError("this list is kept for half an hour and is gone: show it again")
    return values[place]


def toggled(chosen: Sequence[str], name: str) -> list[str]:
    """Returns what is chosen after a click: with the name, or without it if it was chosen already."""
    return [other for other in chosen if other != name] if name in chosen else [*chosen, name]


def kept(value: Any) -> gr.State:
    """Returns what the server remembers of one browser tab, for half an hour."""
    return gr.State(value, time_to_live=KEPT_SECONDS)


def shown(answer: gr.Textbox | None = None, *emptied: gr.Gallery) -> Callable[..., Any]:
    """Decorates what an event calls: a mistake is one line on the page, for ten seconds and in a text.

    Args:
        answer (`gr.Textbox`, *optional*): Gets the line, too; an output of the event.
        emptied (`gr.Gallery`): Outputs of the event that would show something older.
    """

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def run(*arguments: Any) -> Any:
            try:
                return function(*arguments)
            except (UserError, ImportError) as error:
                line = " ".join(str(error).split())
                # It may hold the name of a file, and is no HTML.
                gr.Warning(html.escape(line))
                changed: dict[Any, Any] = {grid: [] for grid in emptied}
                return changed | ({} if answer is None else {answer: line}) or gr.skip()

        return run

    return decorated


def user(request: gr.Request) -> str | None:
    """Returns the user of a request; None without a password, for the user who runs the server."""
    return None if request.request is None else request.request.scope.get("state", {}).get("user")
