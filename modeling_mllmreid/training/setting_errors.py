"""Errors of libraries about a setting, as one line for the user."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..utils.errors import UserError


@contextmanager
def setting_errors(setting: str, remedy: str = "correct it") -> Iterator[None]:
    """Turns exceptions of a library about a setting or file into UserError; out of memory passes.

    Args:
        setting (`str`): Setting or file that begins the message.
        remedy (`str`): How to fix it.
    """
    try:
        yield
    except (UserError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{setting}: {reason}: {remedy}") from error
