"""The message of a refusal, which is one line."""

import pytest

from modeling_mllmreid.utils.errors import UserError


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    """Returns the message of an error, and asserts that it is one line."""
    text = str(error.value)
    assert "\n" not in text
    return text
