"""The one exception that means: the user can fix this. Its message is always one bounded line."""

import re
import traceback
from pathlib import Path

PACKAGE = f"{Path(__file__).parents[1]}/"
MOST_CHARACTERS = 1000
LINE_ENDS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+\s*")


class UserError(ValueError):
    """A mistake in what the user gave: one line that says what is wrong, where, and how to fix it.

    The command line prints the message without a traceback and exits with `exit_code`; nothing half-written is left.
    message: may quote what was given, file names and other libraries' messages; `one_line` makes it fit for a terminal.
    """

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str, most: int = MOST_CHARACTERS) -> str:
    """The text as one line of at most `most` characters, its middle left out; what is not printable is escaped.

    A file name or a library's message may hold line ends, codes that a terminal obeys, and bytes that are not UTF-8.
    """
    if len(text) > most:
        # The beginning says what is wrong and where, the end how to fix it.
        text = f"{text[: most * 2 // 3]} ... {text[-(most // 3 - 5) :]}"
    text = LINE_ENDS.sub(" ", text)
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped if len(escaped) <= most else f"{escaped[: most * 2 // 3]} ... {escaped[-(most // 3 - 5) :]}"


def is_our_fault(error: Exception) -> bool:
    """Whether an exception comes from this package's own code, and not from a library that was given foreign values."""
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE)
