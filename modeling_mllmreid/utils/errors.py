"""The error of a user's mistake, with a message of one line."""

import re
import traceback
from pathlib import Path

PACKAGE = f"{Path(__file__).parents[1]}/"
MOST_CHARACTERS = 1000
LINE_ENDS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+\s*")


class UserError(ValueError):
    """An error in the user's input. The message is one line: what is wrong, where, and how to fix it.

    The command line prints the message without a traceback and exits with `exit_code`.

    Args:
        message (`object`): the message. It may quote file names and other libraries' messages; `one_line` escapes it.
    """

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


def one_line(text: str, most: int = MOST_CHARACTERS) -> str:
    """Returns the text as one line of at most `most` characters, without its middle, with other characters escaped.

    A file name or a library's message may contain line ends, terminal control codes, and bytes that are not UTF-8.
    """
    if len(text) > most:
        # The message starts with what is wrong and where, and ends with how to fix it.
        text = f"{text[: most * 2 // 3]} ... {text[-(most // 3 - 5) :]}"
    text = LINE_ENDS.sub(" ", text)
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped if len(escaped) <= most else f"{escaped[: most * 2 // 3]} ... {escaped[-(most // 3 - 5) :]}"


def is_our_fault(error: Exception) -> bool:
    """Returns whether an exception comes from this package's own code, and not from a library."""
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE)
