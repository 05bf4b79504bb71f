"""An extension of griffe: docstrings in the style of transformers, as its Google parser reads them."""

import ast
import re
from pathlib import Path
from typing import Any

import griffe

# An argument with its type, as in "    k (`int`, *optional*):"; a type may hold one level of brackets.
ARGUMENT = re.compile(r"^ +[*\w, ]+ \((?:[^()\n]|\([^()\n]*\))*\):", re.MULTILINE)
# A link of transformers to a class or function of the package.
LINK = re.compile(r"\[`(\w+)`\](?!\[)")
PACKAGE = Path(__file__).parents[2] / "modeling_mllmreid"


def public_names() -> frozenset[str]:
    """Returns the names of the API reference, without importing the package."""
    for node in ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return frozenset(ast.literal_eval(node.value))
    raise LookupError("modeling_mllmreid/__init__.py: has no __all__")


class TransformersStyle(griffe.Extension):
    """Changes a docstring before it is parsed.

    `Example:` is a section of examples. Types have no marks, and no default, which the signature has. Links lead to the
    entry of a public name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names = public_names()

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = LINK.sub(self.link, ARGUMENT.sub(without_marks, text))

    def link(self, found: re.Match[str]) -> str:
        """Returns a link as mkdocstrings writes it, or the name alone."""
        name = found[1]
        return f"[`{name}`][{PACKAGE.name}.{name}]" if name in self.names else f"`{name}`"


def without_marks(found: re.Match[str]) -> str:
    """Returns an argument and its type without backticks, asterisks, links and the default."""
    text = re.sub(r", defaults to (?:`[^`]*`|[^,()]*)", "", LINK.sub(r"\1", found[0]))
    return re.sub(r"[`*]", "", text)
