"""What of a JSON file's content shows this machine: origins and paths, which a published file leaves out."""

import os
import re
from collections.abc import Mapping
from typing import Any

ORIGIN = re.compile(r"(.*_)?(name_or_path|tokenizer_file|vocab_file|merges_file|cache_dir)")
# A path is meant to stay in these: a thin form's backbone, which a push refuses; in the others "/" is only a character.
KEPT = ("backbone", "content", "chat_template")
ABSOLUTE = re.compile(r"(file://)?(/|~[/\\]|[A-Za-z]:[\\/]|\\\\)[^\n]*[^\n/\\]")
# An absolute path inside a text; a web address is none, and neither is an escape in a regular expression.
_NAME = r"[\w.@+=,#$%~-]+"
INSIDE = re.compile(
    rf"(?<![\w./:<&;\\])(?:file://)?(?:~?(?:/{_NAME}){{2,}}|~/{_NAME}|[A-Za-z]:[\\/](?:{_NAME}[\\/]?)+)"
)


def without_local_paths(value: Any) -> Any:
    """The same content, at every depth, without the paths of this machine: a name of origin goes, others are cut."""
    if isinstance(value, Mapping):
        return {
            key: item if key in KEPT else without_local_paths(item)
            for key, item in value.items()
            if not (ORIGIN.fullmatch(str(key)) and isinstance(item, str) and is_local(item))
        }
    if isinstance(value, (list, tuple)):
        return [without_local_paths(item) for item in value]
    if isinstance(value, str):
        return last_name(value) if ABSOLUTE.fullmatch(value) else INSIDE.sub(lambda m: last_name(m[0]), value)
    return value


def last_name(path: str) -> str:
    """A path's last part."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def is_local(name: str) -> bool:
    """Whether a model's name is a path of this machine, not a name on the Hub (owner/name)."""
    return bool(name) and (re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is None or os.path.exists(name))
