"""Reads JSON files that may come from other programs: limited in size, checked by type, with errors of one line."""

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
    """Reads a JSON file as a `kind`, a model of `formats` or a list or dictionary of them.

    Raises UserError, with the file, the field and the expected value, if the file cannot be read, is larger than 1 GiB,
    or is not UTF-8, not JSON or of another kind.
    """
    return parse_json(read_file(path, remedy=remedy), kind, where=os.fspath(path), remedy=remedy)


def read_file(path: str | os.PathLike[str], *, remedy: str = "restore the file") -> bytes:
    """Reads a file's bytes. Raises UserError if it cannot be read, is a pipe or a device, or is larger than 1 GiB."""
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
    """Raises UserError for a pipe or a device in a folder or its sub-folders: a library would wait for its input."""
    for pattern in ("*", "*/*"):
        for path in Path(folder).glob(pattern):
            if path.exists() and not path.is_file() and not path.is_dir():
                raise UserError(f"{path}: is a pipe or a device, not a file: remove it")


def parse_json(content: bytes | str, kind: type[Kind], *, where: str, remedy: str = "restore the file") -> Kind:
    """Parses JSON text as a `kind`. `where` starts the messages. Raises UserError as `read_json`."""
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
    """Checks a parsed value, such as that of a YAML file, as a `kind`. Raises UserError as `read_json`."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_fault(error)}: {remedy}") from None


def _first_fault(error: ValidationError) -> str:
    faults = error.errors(include_url=False)
    more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return _in_words(faults[0]) + more


def _in_words(fault: ErrorDetails) -> str:
    """Formats an error: the field, what is wrong with it, and its value."""
    if fault["type"] == "json_invalid":
        reason = fault.get("ctx", {}).get("error", fault["msg"])
        return f"not JSON ({reason})"
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in fault["loc"])
    named = f"field {_bounded(place.lstrip('.'))}" if place else "the whole content"
    wrong = fault["msg"][:1].lower() + fault["msg"][1:]
    found = "" if fault["type"] == "missing" else f", not {_bounded(repr(fault['input']))}"
    return f"{named}: {_bounded(wrong, 160)}{found}"


def _bounded(text: str, most: int = 60) -> str:
    """Returns the text in one line, shortened with dots."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
