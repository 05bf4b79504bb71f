"""An extension of griffe: docstrings in the style of transformers, as its Google parser reads them."""

import re
from typing import Any

import griffe

# An argument with its type, as in "    k (`int`, *optional*):".
ARGUMENT = re.compile(r"^    \w+ \([^)]*\):", re.MULTILINE)


class TransformersStyle(griffe.Extension):
    """Changes a docstring before it is parsed: `Example:` is a section of examples, types have no marks."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = ARGUMENT.sub(lambda found: re.sub(r"[`*]", "", found[0]), text)
