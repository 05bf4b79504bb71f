"""Reading JSON files that may come from outside: bounded, typed, and with one line for each fault."""

import os
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .errors import UserError

MAX_BYTES = 2**30

Kind = TypeVar("Kind")


def read_json(path: str | os.PathLike[str], kind: type[Kind], *, remedy: str = "restore the file") -> Kind:
    """The content of a JSON file as a `kind` of this module (or a list or dictionary of them).

    Raises UserError naming the file, the field and what was expected there: where the file cannot be read, is larger
    than 1 GiB, is not UTF-8, not JSON, or does not fit.
    """
    return parse_json(read_file(path, remedy=remedy), kind, where=os.fspath(path), remedy=remedy)


def read_file(path: str | os.PathLike[str], *, remedy: str = "restore the file") -> bytes:
    """The bytes of a file that comes from outside. Raises UserError where it cannot be read, and for a pipe or a
    device, which would never end, and for more than 1 GiB."""
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise UserError(f"{os.fspath(path)}: is a pipe or a device, not a file: {remedy}")
        if found.st_size > MAX_BYTES:
            raise UserError(f"{os.fspath(path)}: larger than 1 GiB, which no file of this kind is: {remedy}")
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{os.fspath(path)}: cannot be read ({error.strerror}): {remedy}") from error
    except ValueError as error:  # a path with a NUL
        if isinstance(error, UserError):
            raise
        raise UserError(f"{os.fspath(path)!r}: is no path ({error})") from error


def refuse_special_files(folder: str | os.PathLike[str]) -> None:
    """Raises UserError for a pipe or a device in a folder or in its sub-folders: a library that opens one waits."""
    for pattern in ("*", "*/*"):
        for path in Path(folder).glob(pattern):
            if path.exists() and not path.is_file() and not path.is_dir():
                raise UserError(f"{path}: is a pipe or a device, not a file: remove it")


def parse_json(content: bytes | str, kind: type[Kind], *, where: str, remedy: str = "restore the file") -> Kind:
    """JSON text as a `kind`. where: what the messages begin with. Raises UserError as `read_json` does."""
    if isinstance(content, bytes):
        try:
            content = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{where}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    try:
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_fault(error)}: {remedy}") from None


def check_content(value: Any, kind: type[Kind], *, where: str, remedy: str = "restore the file") -> Kind:
    """A value that was parsed already (of a YAML file, say) as a `kind`. Raises UserError as `read_json` does."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_fault(error)}: {remedy}") from None


def _first_fault(error: ValidationError) -> str:
    faults = error.errors(include_url=False)
    more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return _in_words(faults[0]) + more


def _in_words(fault: ErrorDetails) -> str:
    """One fault: the field, what is wrong with it, and what was found."""
    if fault["type"] == "json_invalid":
        reason = fault.get("ctx", {}).get("error", fault["msg"])
        return f"not JSON ({reason})"
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in fault["loc"])
    named = f"field {_bounded(place.lstrip('.'))}" if place else "the whole content"
    wrong = fault["msg"][:1].lower() + fault["msg"][1:]
    found = "" if fault["type"] == "missing" else f", not {_bounded(repr(fault['input']))}"
    return f"{named}: {_bounded(wrong, 160)}{found}"


def _bounded(text: str, most: int = 60) -> str:
    """The text in one line, cut with dots."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
