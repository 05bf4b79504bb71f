"""What happens to a row that cannot be used: the reading stops, or the row is left out and remembered."""

import logging

from ..errors import UserError

logger = logging.getLogger(__name__)

ON_ERROR = ("stop", "skip")


class Problems:
    """The rows that could not be used, in the order they were met.

    on_error: "stop" raises the first problem; "skip" keeps its message in `messages`, and the row is left out.
    notes: what the user should know of the data that was read, a line each: where its splits come from, what no split
    has.
    Raises UserError for another policy.
    """

    def __init__(self, on_error: str = "stop"):
        if on_error not in ON_ERROR:
            raise UserError(f"on_error: unknown {on_error!r}: use one of {', '.join(ON_ERROR)}")
        self.on_error = on_error
        self.messages: list[str] = []
        self.notes: list[str] = []

    def report(self, problem: UserError) -> None:
        """Takes a row's problem: raised at once, or remembered."""
        if self.on_error == "stop":
            raise problem
        self.messages.append(str(problem))

    def warn(self, note: str) -> None:
        """Logs a note as a warning and keeps it."""
        logger.warning("%s", note)
        self.notes.append(note)
