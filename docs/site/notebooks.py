"""A hook of MkDocs: each notebook becomes a page, with the outputs that it holds, and stays a file to download."""

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
DOWNLOAD = "[Download this notebook]({name})"
SHELL, OUTPUT = "%%bash\n", 'text title="Output"'


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page next to each notebook."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        notebook = json.loads((ROOT / "docs" / file.src_uri).read_text(encoding="utf-8"))
        source = file.src_uri.removesuffix(".ipynb") + ".md"
        files.append(File.generated(config, source, content=page_of(notebook, Path(file.src_uri).name)))
    return files


def page_of(notebook: dict[str, Any], name: str) -> str:
    """Returns a notebook as Markdown; the download comes after its first cell, which has the title."""
    parts = [part for cell in notebook["cells"] for part in parts_of(cell)]
    return "\n\n".join([parts[0], DOWNLOAD.format(name=name), *parts[1:]]) + "\n"


def parts_of(cell: dict[str, Any]) -> list[str]:
    """Returns the text or the code of a cell, and its outputs."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    language, source = ("bash", source.removeprefix(SHELL)) if source.startswith(SHELL) else ("python", source)
    return [block(language, source), *filter(None, map(output_of, cell["outputs"]))]


def output_of(output: dict[str, Any]) -> str:
    """Returns a text that was printed, or a picture; of a result that is neither, its text."""
    if output["output_type"] == "stream":
        return block(OUTPUT, "".join(output["text"]))
    data = output["data"]
    for kind in ("image/png", "image/jpeg"):
        if kind in data:
            return f"![Output of the cell](data:{kind};base64,{''.join(data[kind]).strip()})"
    return block(OUTPUT, "".join(data["text/plain"]))


def block(language: str, text: str) -> str:
    """Returns a block of code."""
    return f"```{language}\n{text.rstrip()}\n```"
