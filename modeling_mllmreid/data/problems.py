"""What happens to a row that cannot be used: the reading stops, or the row is left out and remembered."""

from ..errors import UserError

ON_ERROR = ("stop", "skip")


class Problems:
    """The rows that could not be used, in the order they were met.

    on_error: "stop" raises the first problem; "skip" keeps its message in `messages`, and the row is left out.
    Raises UserError for another policy.
    """

    def __init__(self, on_error: str = "stop"):
        if on_error not in ON_ERROR:
            raise UserError(f"on_error: unknown {on_error!r}: use one of {', '.join(ON_ERROR)}")
        self.on_error = on_error
        self.messages: list[str] = []

    def report(self, problem: UserError) -> None:
        """Takes a row's problem: raised at once, or remembered."""
        if self.on_error == "stop":
            raise problem
        self.messages.append(str(problem))
