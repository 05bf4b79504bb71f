"""What numbers a field takes, said in its type: `Annotated[int, Range(at_least=1)]`; `commands.options` checks it."""

from typing import Annotated, NamedTuple


class Range(NamedTuple):
    """The numbers of a field: at least and at most these, or above and below those."""

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
        """In words, behind "give a number"."""
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


# What allocates or loops ends somewhere: larger numbers are slips of the keyboard.
MILLIONS, THOUSAND = 10_000_000, 1024
Count = Annotated[int, Range(at_least=1, at_most=MILLIONS)]
Several = Annotated[int, Range(at_least=2, at_most=MILLIONS)]
CountOrZero = Annotated[int, Range(at_least=0, at_most=MILLIONS)]
Threads = Annotated[int, Range(at_least=1, at_most=THOUSAND)]
Pixels = Annotated[int, Range(at_least=1, at_most=4096)]
# Of fields whose dataclass says the rest.
AtMostMillions = Annotated[int, Range(at_most=MILLIONS)]
AtMostThousand = Annotated[int, Range(at_most=THOUSAND)]
# Each is a copy of this process: a slip of the finger would bring the machine down.
MOST_PROCESSES = 128
Processes = Annotated[int, Range(at_most=MOST_PROCESSES)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
# What NumPy and torch both take.
Seed = Annotated[int, Range(at_least=0, at_most=2**32 - 1)]
