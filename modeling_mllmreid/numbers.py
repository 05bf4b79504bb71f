"""Ranges of numbers that settings must lie in."""

import math
from typing import Any

from .errors import UserError

# Least and most; infinity itself is in no range.
POSITIVE, NOT_NEGATIVE, AT_LEAST_ONE = (math.ulp(0.0), math.inf), (0, math.inf), (1, math.inf)


def check_number(name: str, value: Any, least: float, most: float) -> None:
    """Raises UserError for a number out of [least, most], NaN, or infinity; None is none."""
    if value is None:
        return
    if not isinstance(value, int | float) or not (least <= value <= most and math.isfinite(value)):
        if (least, most) == POSITIVE:
            wanted = "a number above 0"
        elif most == math.inf:
            wanted = f"{least} or more"
        else:
            wanted = f"{least} to below 1" if most < 1 else f"{least} to {most}"
        raise UserError(f"{name} {value}: give {wanted}")
