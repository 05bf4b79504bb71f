"""The model: the files that travel to the Hub inside every checkpoint.

Its classes are imported at their first use: torch and transformers take seconds to import, and some files here, such as
`images`, need neither.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .registered import (
        ImageEncoder,
        ImageEncoderProcessor,
        MllmReIDConfig,
        MllmReIDModel,
        MllmReIDOutput,
        MllmReIDProcessor,
        MllmReIDVisionConfig,
        MllmReIDVisionModel,
        MllmReIDVisionProcessor,
        PersonReIDPipeline,
    )

__all__ = [
    "ImageEncoder",
    "ImageEncoderProcessor",
    "MllmReIDConfig",
    "MllmReIDModel",
    "MllmReIDOutput",
    "MllmReIDProcessor",
    "MllmReIDVisionConfig",
    "MllmReIDVisionModel",
    "MllmReIDVisionProcessor",
    "PersonReIDPipeline",
]


def _load(name: str) -> Any:
    """Imports a class at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(".registered", __name__), name)
    return value


if not TYPE_CHECKING:
    # Hidden from type checkers, which would accept any name otherwise.
    __getattr__ = _load
