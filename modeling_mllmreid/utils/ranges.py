"""Value ranges of option fields as types, such as `Annotated[int, Range(at_least=1)]`; `options.parser` checks them."""

from typing import Annotated, NamedTuple


class Range(NamedTuple):
    """The values that a number field accepts, by inclusive (`at_`) and exclusive limits."""

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int | float) and not (
            (self.at_least is not None and value < self.at_least)
            or (self.at_most is not None and value > self.at_most)
            or (self.above is not None and value <= self.above)
            or (self.below is not None and value >= self.below)
        )

    def __str__(self) -> str:
        """Returns the limits in words, to follow "give a number"."""
        words = {"at least": self.at_least, "at most": self.at_most, "above": self.above, "below": self.below}
        return " and ".join(f"{word} {limit:,}" for word, limit in words.items() if limit is not None)

    def in_short(self, name: str) -> str:
        """As `--help` shows it: 0<=X<1, X being the name."""
        below = "" if self.at_least is None else f"{self.at_least:,}<="
        below = below if self.above is None else f"{self.above:,}<"
        beyond = "" if self.at_most is None else f"<={self.at_most:,}"
        beyond = beyond if self.below is None else f"<{self.below:,}"
        if not beyond and below:
            return f"{name}>={self.at_least:,}" if self.above is None else f"{name}>{self.above:,}"
        return f"{below}{name}{beyond}"


# Limits of values that allocate memory or loop: larger ones are typing errors.
MILLIONS, THOUSAND = 10_000_000, 1024
Count = Annotated[int, Range(at_least=1, at_most=MILLIONS)]
Several = Annotated[int, Range(at_least=2, at_most=MILLIONS)]
CountOrZero = Annotated[int, Range(at_least=0, at_most=MILLIONS)]
Threads = Annotated[int, Range(at_least=1, at_most=THOUSAND)]
MOST_PIXELS = 4096
Pixels = Annotated[int, Range(at_least=1, at_most=MOST_PIXELS)]
# For fields whose dataclass checks the lower limit.
AtMostMillions = Annotated[int, Range(at_most=MILLIONS)]
AtMostThousand = Annotated[int, Range(at_most=THOUSAND)]
# Each loading process is a copy of this one: a typing error would exhaust the machine.
MOST_PROCESSES = 128
Processes = Annotated[int, Range(at_most=MOST_PROCESSES)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
# The seeds that both NumPy and torch accept.
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
Port = Annotated[int, Range(at_least=0, at_most=65535)]
