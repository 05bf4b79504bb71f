"""The one exception that means: the user can mend this."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that says what is wrong, where, and the mend.

    The command line prints the message without a traceback and exits with `exit_code`; nothing half-written is left.
    """

    exit_code = 2
