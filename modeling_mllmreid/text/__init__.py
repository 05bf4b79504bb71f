"""Texts: the instructions, the generation engine, and the continuations of captions."""

from .continuations import TARGET_MODES, kept_attribute_share, target_text, write_continuations
from .generation import generate_texts
from .instructions import (
    COMMON_INSTRUCTION,
    STANDARD_INSTRUCTION,
    STANDARD_POOL,
    draw_standard_instruction,
    instruction_text,
)

__all__ = [
    "COMMON_INSTRUCTION",
    "STANDARD_INSTRUCTION",
    "STANDARD_POOL",
    "TARGET_MODES",
    "draw_standard_instruction",
    "generate_texts",
    "instruction_text",
    "kept_attribute_share",
    "target_text",
    "write_continuations",
]
