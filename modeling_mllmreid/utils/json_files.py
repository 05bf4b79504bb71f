"""Reads JSON files from outside: bounded in size, checked against a type, with one line for an error."""

import os
import stat
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .errors import UserError

MAX_BYTES = 2**30

Kind = TypeVar("Kind")

INT64 = 2**63 - 1
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1, le=100_000)]
Text = Annotated[str, Field(min_length=1)]
Id = Annotated[int, Field(ge=0, le=INT64)]


class Format(BaseModel):
    """The base of all JSON formats: exact types, no NaN or infinity.

    Fields that a format does not name are kept, so that newer and older files can be read.
    """

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


def read_json(path: str | os.PathLike[str], kind: type[Kind], *, remedy: str = "restore the file") -> Kind:
    """Reads a JSON file as an object of type `kind`: a `Format`, or a list or dictionary of them.

    Raises UserError with the file, the field and the expected value if the file cannot be read, is larger than 1 GiB,
    is not UTF-8, is not JSON, or does not have the type.
    """
    return parse_json(read_file(path, remedy=remedy), kind, where=os.fspath(path), remedy=remedy)


def read_file(path: str | os.PathLike[str], *, remedy: str = "restore the file") -> bytes:
    """Reads the bytes of a file.

    Raises UserError if the file cannot be read, is larger than 1 GiB, or is a pipe or a device, which may never end.
    """
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise UserError(f"{os.fspath(path)}: is a pipe or a device, not a file: {remedy}")
        if status.st_size > MAX_BYTES:
            raise UserError(f"{os.fspath(path)}: larger than 1 GiB, the limit for such a file: {remedy}")
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"{os.fspath(path)}: cannot be read ({error.strerror}): {remedy}") from error
    except ValueError as error:  # a path with a NUL
        if isinstance(error, UserError):
            raise
        raise UserError(f"{os.fspath(path)!r}: is not a path ({error})") from error


def refuse_special_files(folder: str | os.PathLike[str]) -> None:
    """Raises UserError for a pipe or a device in a folder or its sub-folders: a library that opens one hangs."""
    for pattern in ("*", "*/*"):
        for path in Path(folder).glob(pattern):
            if path.exists() and not path.is_file() and not path.is_dir():
                raise UserError(f"{path}: is a pipe or a device, not a file: remove it")


def parse_json(content: bytes | str, kind: type[Kind], *, where: str, remedy: str = "restore the file") -> Kind:
    """Parses JSON text as an object of type `kind`. where: the start of messages. Raises UserError like `read_json`."""
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
    """Checks a parsed value, for example of a YAML file, against type `kind`. Raises UserError like `read_json`."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"{where}: {_first_fault(error)}: {remedy}") from None


def _first_fault(error: ValidationError) -> str:
    """Describes the first error, and counts the others."""
    faults = error.errors(include_url=False)
    more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return _describe(faults[0]) + more


def _describe(fault: ErrorDetails) -> str:
    """Describes one error: the field, the problem, and the value."""
    if fault["type"] == "json_invalid":
        reason = fault.get("ctx", {}).get("error", fault["msg"])
        return f"not JSON ({reason})"
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in fault["loc"])
    field = f"field {_bounded(place.lstrip('.'))}" if place else "the whole content"
    problem = fault["msg"][:1].lower() + fault["msg"][1:]
    value = "" if fault["type"] == "missing" else f", not {_bounded(repr(fault['input']))}"
    return f"{field}: {_bounded(problem, 160)}{value}"


def _bounded(text: str, most: int = 60) -> str:
    """Returns the text on one line, cut with dots."""
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
