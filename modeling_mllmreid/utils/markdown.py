"""Escapes foreign text for Markdown: one line of plain characters, no link, image, HTML, code or table edge."""

import json
import re
import unicodedata
from typing import Any

# Names of data sets and settings are shorter; a malicious file may contain megabytes.
MAX_CHARACTERS = 300
_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])")
# Characters that start a heading, a list or a quotation.
_FIRST = re.compile(r"^(?:[-+#>=]|\d{1,9}(?=[.)](?:\s|$)))")
_ENTITIES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "&#64;"), ("://", "&#58;//"), ("www.", "www&#46;"))


class Markdown(str):
    """Text that is Markdown already: constants, numbers and escaped text of this package."""


def plain(value: Any) -> str:
    """Returns the value as one line of text without control characters, cut after `MAX_CHARACTERS`."""
    text = " ".join("".join(map(_printable, str(value)[: 10 * MAX_CHARACTERS])).split())
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."


def _printable(character: str) -> str:
    """Returns the character, a space for control characters and line ends, and nothing for text direction marks."""
    kind = unicodedata.category(character)
    return {"Cc": " ", "Zl": " ", "Zp": " ", "Cf": "", "Cs": "\ufffd"}.get(kind, character)


def escape(value: Any) -> Markdown:
    """Returns the value escaped, so that Markdown shows its characters. [`Markdown`] text is not changed."""
    if isinstance(value, Markdown):
        return value
    text = plain(value)
    for character, entity in _ENTITIES:
        text = text.replace(character, entity)
    text = _SPECIAL.sub(r"\\\g<0>", text)
    first = _FIRST.match(text)
    if first:
        text = f"\\{text}" if not first[0].isdigit() else f"{first[0]}\\{text[first.end() :]}"
    return Markdown(text)


def code(value: Any) -> Markdown:
    """Returns the value as a code span. It has no escapes: backticks become quotes, `|` is escaped for tables."""
    text = plain(value).replace("`", "'").replace("|", "\\|")
    return Markdown(f"`{text or ' '}`")


def in_python_string(value: Any) -> str:
    """Returns the value as the inside of a double-quoted Python string, on one line."""
    return json.dumps(str(value).encode("utf-8", "replace").decode(), ensure_ascii=False)[1:-1]
