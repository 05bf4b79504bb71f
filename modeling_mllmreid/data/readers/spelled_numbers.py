"""Numbers that names spell: two spellings of one number (1 and 0001) would make one person of two without a word."""

from ...errors import UserError

MAX_DIGITS = 18  # every number of so many digits fits the columns' int64


class SpelledNumbers:
    """The persons or the cameras of one set, each of which all its names have to spell the same way.

    what: "person" or "camera", for the messages.
    """

    def __init__(self, what: str):
        self.what = what
        self._first: dict[int, tuple[str, str]] = {}

    def read(self, digits: str, where: str) -> int:
        """The number. where: the file or the line that spells it.

        Raises UserError for a number of too many digits, and for another spelling than before, naming both places.
        """
        if len(digits.lstrip("-")) > MAX_DIGITS:
            raise UserError(
                f"{where}: {self.what} {digits[:30]} has more than {MAX_DIGITS} digits: give a smaller number"
            )
        number = int(digits)
        spelling, first = self._first.setdefault(number, (digits, where))
        if spelling != digits:
            raise UserError(
                f"{where}: {self.what} {digits} is the number of {self.what} {spelling} in {first}, spelled otherwise: "
                f"spell one {self.what} one way, and give another {self.what} another number"
            )
        return number
