"""Executes the notebooks of this folder and stores their outputs in them.

python docs/notebooks/execute.py [NAME ...]

It needs the extra `notebooks`. The notebooks run one after the other in one new folder with the kernel of this Python,
so that people are rendered once. Progress bars and other lines of the error stream are left out of what is stored, and
large pictures become JPEG files. A notebook whose outputs name a folder or the host of this machine is not stored.
"""

import base64
import getpass
import hashlib
import io
import os
import re
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).resolve().parent
SECONDS = 600  # of a cell, before it counts as hanging
# Base64 characters. A larger picture becomes a JPEG file, at most 720 pixels wide.
LARGE_PICTURE, WIDEST = 40_000, 720


def code_digest(notebook: NotebookNode) -> str:
    """Returns the SHA-256 of the code of a notebook: its outputs are those of this code."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Executes the cells with a folder as the working directory. Raises CellExecutionError for a cell that fails."""
    # The command `mllmreid` is next to this Python, also where its environment is not activated.
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    options = {"timeout": SECONDS, "kernel_name": "python3", "record_timing": False}
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}, **options).execute(env=environment)


def tidy(notebook: NotebookNode) -> None:
    """Makes the outputs small, and records the code that they come from."""
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = joined(output for output in cell.outputs if output.get("name") != "stderr")
        for data in (output.data for output in cell.outputs if "data" in output):
            if len(data.get("image/png", "")) > LARGE_PICTURE:
                data["image/jpeg"] = as_jpeg(data.pop("image/png"))
    # Names no version of Python, which would change with every machine.
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["code_sha256"] = code_digest(notebook)


def joined(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Returns outputs, the lines that came in pieces as one text."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text
        else:
            kept.append(output)
    return kept


def as_jpeg(png: str) -> str:
    """Returns a picture in base64 as JPEG, smaller if it is wide."""
    picture, buffer = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), io.BytesIO()
    if picture.width > WIDEST:
        picture = picture.resize((WIDEST, round(WIDEST * picture.height / picture.width)), Image.Resampling.LANCZOS)
    picture.save(buffer, "JPEG", quality=75, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def machine_names(notebook: NotebookNode, folder: Path) -> list[str]:
    """Returns what the texts of a notebook say about this machine: folders, its name, and who uses it."""
    names = {str(folder), str(FOLDER.parents[1]), str(Path.home()), sys.prefix, socket.gethostname(), getpass.getuser()}
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.get("text", "") for output in outputs]
    texts += [text for output in outputs for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return sorted(name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", "\n".join(texts)))


def main() -> None:
    """Executes the notebooks of these names, by default all."""
    paths = [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb"))
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            notebook, started = nbformat.read(path, as_version=4), time.monotonic()
            execute(notebook, Path(folder))
            tidy(notebook)
            if names := machine_names(notebook, Path(folder)):
                sys.exit(f"{path.name}: its outputs name {', '.join(names)}: change the cell, and execute it again")
            nbformat.write(notebook, path)
            print(f"{path.name}: {time.monotonic() - started:.0f} s, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
