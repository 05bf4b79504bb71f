"""The instructions and their selector."""

import inspect

import numpy as np
import pytest

from modeling_mllmreid.errors import UserError
from modeling_mllmreid.model import MllmReIDProcessor
from modeling_mllmreid.text import (
    COMMON_INSTRUCTION,
    STANDARD_INSTRUCTION,
    STANDARD_POOL,
    draw_standard_instruction,
    instruction_text,
)


def test_selector():
    assert instruction_text("common") == COMMON_INSTRUCTION
    assert instruction_text("standard") == STANDARD_INSTRUCTION
    with pytest.raises(UserError, match="'comon' is unknown, nearest is 'common'"):
        instruction_text("comon")


def test_the_processors_default_is_the_common_instruction():
    assert inspect.signature(MllmReIDProcessor.__init__).parameters["instruction"].default == COMMON_INSTRUCTION


def test_draws_come_from_the_whole_pool_and_follow_the_generator():
    first, second = ([draw_standard_instruction(rng) for _ in range(200)] for rng in map(np.random.default_rng, (3, 3)))
    assert first == second and set(first) == set(STANDARD_POOL) and len(STANDARD_POOL) == len(set(first)) >= 8
