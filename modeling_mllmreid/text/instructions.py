"""The instructions of the language branches: the common one, and the standard ones to compare it with."""

import difflib

from ..utils.errors import UserError

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

# Training draws one of the texts for each image.
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "common": (COMMON_INSTRUCTION,),
    "standard": (STANDARD_INSTRUCTION,),
    "pool": STANDARD_POOL,
}


def instruction_texts(name: str) -> tuple[str, ...]:
    """Returns the texts of an instruction by its name.

    Args:
        name (`str`): "common", "standard" or "pool".

    Returns:
        `tuple[str, ...]`: One text, or the ten of the pool.

    Raises:
        UserError: For another name, with the nearest one.
    """
    if name not in INSTRUCTIONS:
        nearest = difflib.get_close_matches(name.lower(), INSTRUCTIONS, n=1, cutoff=0)[0]
        raise UserError(
            f"instruction {name!r} is unknown, nearest is {nearest!r}: give one of {', '.join(INSTRUCTIONS)}"
        )
    return INSTRUCTIONS[name]
