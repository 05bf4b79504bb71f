"""`UserError`: the exception for mistakes that the user can fix. Its message is always one bounded line."""

import re
import traceback
from pathlib import Path

PACKAGE = f"{Path(__file__).parents[1]}/"
MOST_CHARACTERS = 1000
LINE_ENDS = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+\s*")


class UserError(ValueError):
    """A mistake in the user's input. The message is one line: what is wrong, where, and how to fix it.

    The command line prints the message without a traceback and exits with `exit_code`.

    Args:
        message: May quote input, file names and messages of other libraries; `one_line` makes it safe for a terminal.

    Example:
        >>> from modeling_mllmreid.utils.errors import UserError
        >>> str(UserError("top_k 0:\ngive 1 or more"))
        'top_k 0: give 1 or more'
    """

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(one_line(str(message)))


class NotFound(UserError):
    """What was asked for by its name is not there."""


class TooLarge(UserError):
    """The input has more bytes or pixels than are taken."""


class Unavailable(UserError):
    """A place or a disk cannot be used now. The input may be right: the same may work later."""


def one_line(text: str, most: int = MOST_CHARACTERS) -> str:
    """Returns the text as one line of at most `most` characters; the middle is cut, unprintable characters are escaped.

    File names and messages of libraries may contain line ends, terminal codes and bytes that are not UTF-8.
    """
    if len(text) > most:
        # The beginning names the mistake and its place, the end names the fix.
        text = f"{text[: most * 2 // 3]} ... {text[-(most // 3 - 5) :]}"
    text = LINE_ENDS.sub(" ", text)
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return escaped if len(escaped) <= most else f"{escaped[: most * 2 // 3]} ... {escaped[-(most // 3 - 5) :]}"


def is_our_fault(error: Exception) -> bool:
    """Returns whether this package's own code raised the exception, and not a library that got foreign values."""
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(PACKAGE)
