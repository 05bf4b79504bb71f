"""The instructions and their selector."""

import inspect

import pytest

from modeling_mllmreid.model import MllmReIDProcessor
from modeling_mllmreid.text.instructions import (
    COMMON_INSTRUCTION,
    STANDARD_INSTRUCTION,
    STANDARD_POOL,
    instruction_texts,
)
from modeling_mllmreid.utils.errors import UserError


def test_selector():
    assert instruction_texts("common") == (COMMON_INSTRUCTION,)
    assert instruction_texts("standard") == (STANDARD_INSTRUCTION,)
    assert instruction_texts("pool") == STANDARD_POOL and len(set(STANDARD_POOL)) == len(STANDARD_POOL) >= 8
    with pytest.raises(UserError, match="'comon' is unknown, nearest is 'common'"):
        instruction_texts("comon")


def test_the_processors_default_is_the_common_instruction():
    assert inspect.signature(MllmReIDProcessor.__init__).parameters["instruction"].default == COMMON_INSTRUCTION
