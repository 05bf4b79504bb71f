"""Regular expressions out of a recipe, which others may have written: some would run for hours, and none may."""

import regex

from ..errors import UserError

SECONDS = 2.0


def check_pattern(pattern: str, option: str) -> None:
    """Raises UserError, naming the option, for what is no regular expression."""
    try:
        regex.compile(pattern)
    except regex.error as error:
        raise UserError(f"{option}: {pattern!r} is no regular expression ({error}): correct it") from None


def matches(pattern: str, name: str, option: str, *, whole: bool = False) -> bool:
    """Whether the pattern is found in a module's or parameter's name, or where `whole` is it from end to end.

    Raises UserError, naming the option, where this takes longer than `SECONDS`.
    """
    match = regex.fullmatch if whole else regex.search
    try:
        return match(pattern, name, timeout=SECONDS) is not None
    except TimeoutError:
        raise UserError(
            f"{option}: {pattern!r} takes longer than {SECONDS:g} s on one name: write it without nested repetitions"
        ) from None
