"""Texts: the instructions, the generation engine, and the continuations of captions."""

from .continuations import TARGET_MODES, kept_attribute_share, target_text, write_continuations
from .generation import generate_texts
from .instructions import COMMON_INSTRUCTION, INSTRUCTIONS, STANDARD_INSTRUCTION, STANDARD_POOL, instruction_texts

__all__ = [
    "COMMON_INSTRUCTION",
    "INSTRUCTIONS",
    "STANDARD_INSTRUCTION",
    "STANDARD_POOL",
    "TARGET_MODES",
    "generate_texts",
    "instruction_texts",
    "kept_attribute_share",
    "target_text",
    "write_continuations",
]
