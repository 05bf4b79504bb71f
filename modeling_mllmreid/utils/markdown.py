"""Foreign text in Markdown: shown as it reads, in one line, never as a link, image, HTML, code, or a table's edge."""

import json
import re
import unicodedata
from typing import Any

# A name of a data set or a setting is shorter; a file that was made to do harm may hold megabytes.
LONGEST = 300
_SPECIAL = re.compile(r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])")
# What makes a heading, a list or a quotation at the start of a line.
_FIRST = re.compile(r"^(?:[-+#>=]|\d{1,9}(?=[.)](?:\s|$)))")
_ENTITIES = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("@", "&#64;"), ("://", "&#58;//"), ("www.", "www&#46;"))


class Markdown(str):
    """Text that is Markdown already: made by us, of constants, numbers and escaped parts."""


def plain(value: Any) -> str:
    """The value as text on one line: without control characters, without runs of space, cut after `LONGEST`."""
    text = " ".join("".join(map(_shown, str(value)[: 10 * LONGEST])).split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _shown(character: str) -> str:
    """The character; a space for a control character or a line's end, nothing for what turns the writing round."""
    kind = unicodedata.category(character)
    return {"Cc": " ", "Zl": " ", "Zp": " ", "Cf": "", "Cs": "\ufffd"}.get(kind, character)


def escape(value: Any) -> Markdown:
    """The value so that Markdown shows its characters; text that is [`Markdown`] already is left as it is."""
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
    """The value as a code span, which knows no escapes: backticks in it become quotes, and a table's edge is kept."""
    text = plain(value).replace("`", "'").replace("|", "\\|")
    return Markdown(f"`{text or ' '}`")


def in_python_string(value: Any) -> str:
    """The value as the inside of a string in double quotes in Python code, on one line."""
    return json.dumps(str(value).encode("utf-8", "replace").decode(), ensure_ascii=False)[1:-1]
