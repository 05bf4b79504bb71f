"""The instructions of the language branch, as data: the common one, and the standard ones that it is compared with."""

import difflib

import numpy as np

from ..errors import UserError

COMMON_INSTRUCTION = "Continue the following text."
STANDARD_INSTRUCTION = "Describe the person in detail: hair, clothes, shoes and what they carry."
STANDARD_POOL = (
    STANDARD_INSTRUCTION,
    "What does this person look like?",
    "Describe the clothes of this person from top to bottom.",
    "Write one sentence by which this person can be found again.",
    "Which colours does this person wear, and where?",
    "Give a short report of this person for someone who has to recognise them.",
    "Describe the upper body, the lower body and the shoes of this person.",
    "What sets this person apart from others in the street?",
    "List the visible attributes of this person as plain text.",
    "Describe this pedestrian: hair, sleeves, trousers or skirt, shoes, bag and hat.",
)

_INSTRUCTIONS = {"common": COMMON_INSTRUCTION, "standard": STANDARD_INSTRUCTION}


def instruction_text(name: str) -> str:
    """The text of the instruction "common" or "standard". Raises UserError for another name, with the nearest one."""
    if name not in _INSTRUCTIONS:
        nearest = difflib.get_close_matches(name.lower(), _INSTRUCTIONS, n=1, cutoff=0)[0]
        raise UserError(
            f"instruction {name!r} is unknown, nearest is {nearest!r}: give one of {', '.join(_INSTRUCTIONS)}"
        )
    return _INSTRUCTIONS[name]


def draw_standard_instruction(rng: np.random.Generator) -> str:
    """One instruction of STANDARD_POOL, each equally likely; the same for the same state of `rng`."""
    return STANDARD_POOL[rng.integers(len(STANDARD_POOL))]
