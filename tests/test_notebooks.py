"""The notebooks: outputs that belong to their code, no trace of a machine, public names, commands that parse."""

import ast
import base64
import importlib.util
import io
import json
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest
from command_lines import parse_command_lines
from documents import ROOT, code_blocks
from PIL import Image

import modeling_mllmreid
from modeling_mllmreid.synthetic.write import write_pedestrians

FOLDER = ROOT / "docs/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 250_000
# Folders that only a machine has, and users' names for them.
MACHINE = re.compile(r"(?<![\w.:/])/(?:tmp|home|root|work|Users|opt|usr|var|mnt|data)/")
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)

spec = importlib.util.spec_from_file_location("execute", FOLDER / "execute.py")
execute = importlib.util.module_from_spec(spec)
spec.loader.exec_module(execute)


def code_cells(path: Path) -> list[nbformat.NotebookNode]:
    """The code cells of a notebook."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def as_page(path: Path, folder: Path) -> Path:
    """A page with the text and the shell cells of a notebook, whose command lines `command_lines` reads."""
    cells = nbformat.read(path, as_version=4).cells
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"]
    for cell in cells:
        if cell.source.startswith("%%bash\n"):
            # Up to a pipe or a redirection; a variable of a number becomes one.
            lines = [re.split(r" [|>] ", line)[0] for line in cell.source.splitlines()[1:]]
            texts.append("```bash\n" + "\n".join(lines).replace('"$GROUP"', "1") + "\n```")
    page = folder / f"{path.stem}.md"
    page.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return page


def test_the_four_notebooks_are_listed():
    assert [path.stem for path in NOTEBOOKS] == [
        "embed_and_search",
        "evaluate_features",
        "explore_gallery",
        "fine_tune",
    ]
    for page, folder in ((FOLDER / "README.md", ""), (ROOT / "docs/README.md", "notebooks/")):
        text = page.read_text(encoding="utf-8")
        assert all(f"({folder}{path.name})" in text for path in NOTEBOOKS), page


@every_notebook
def test_the_outputs_are_those_of_the_code(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    stale = f"python docs/notebooks/execute.py {path.stem}"
    assert notebook.metadata["code_sha256"] == execute.code_digest(notebook), stale
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), stale
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert "stderr" not in {output.get("name") for output in outputs}
    assert sum(any(kind.startswith("image/") for kind in output.get("data", {})) for output in outputs) >= 2


@every_notebook
def test_a_notebook_is_small_and_names_no_machine(path):
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata["language_info"] == {"name": "python"}
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            for kind in [kind for kind in output.get("data", {}) if kind.startswith("image/")]:
                del output["data"][kind]
    found = MACHINE.findall(json.dumps(notebook))
    assert not found


def test_a_path_of_a_machine_is_found():
    assert MACHINE.search('"written to /tmp/abc/runs"') and MACHINE.search('"/home/ida/crops"')
    assert not MACHINE.search("https://example.org/home/page and runs/data/x and docs/data/y")


@every_notebook
def test_the_code_uses_public_names_and_asks_for_a_folder(path):
    cells = code_cells(path)
    assert "# put your" in cells[0].source
    sources = [cell.source for cell in cells if not cell.source.startswith("%%")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    imported = [
        node for node in nodes if isinstance(node, ast.ImportFrom) and node.module.startswith("modeling_mllmreid")
    ]
    assert imported and {node.module for node in imported} == {"modeling_mllmreid"}
    assert {alias.name for node in imported for alias in node.names} <= set(modeling_mllmreid.__all__)
    assert not any(
        "modeling_mllmreid" in alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names
    )


@every_notebook
def test_command_lines_parse(path, monkeypatch, tmp_path):
    page = as_page(path, tmp_path)
    written = sum(block.count("mllmreid ") for block in code_blocks(page, "bash"))
    assert parse_command_lines(page, monkeypatch) >= max(written, 1)


@pytest.mark.parametrize("page", [*NOTEBOOKS, FOLDER / "README.md"], ids=lambda page: page.name)
def test_local_links_resolve(page, tmp_path):
    text = (as_page(page, tmp_path) if page.suffix == ".ipynb" else page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("https://")]
    assert links and all((FOLDER / link).exists() for link in links)


def output_of(**fields) -> nbformat.NotebookNode:
    """A notebook with one cell and one output."""
    cell = nbformat.v4.new_code_cell("1")
    cell.outputs = [nbformat.v4.new_output(**fields)]
    return nbformat.v4.new_notebook(cells=[cell])


def picture(width: int) -> str:
    """A noisy PNG in base64."""
    buffer = io.BytesIO()
    Image.effect_noise((width, 200), 90).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_stored_outputs_are_small():
    notebook = output_of(output_type="display_data", data={"image/png": picture(1200)})
    pieces = [("stdout", "step 1\n"), ("stderr", "12 %"), ("stdout", "step 2\n")]
    notebook.cells[0].outputs += [nbformat.v4.new_output("stream", name=name, text=text) for name, text in pieces]
    execute.tidy(notebook)
    shown, text = notebook.cells[0].outputs
    assert text.text == "step 1\nstep 2\n"
    assert set(shown.data) == {"image/jpeg"}
    assert Image.open(io.BytesIO(base64.b64decode(shown.data["image/jpeg"]))).size == (720, 120)
    assert notebook.metadata["code_sha256"] == execute.code_digest(notebook)

    small = output_of(output_type="display_data", data={"image/png": picture(20)})
    execute.tidy(small)
    assert set(small.cells[0].outputs[0].data) == {"image/png"}


def test_the_digest_is_of_the_code_alone():
    notebook = output_of(output_type="stream", name="stdout", text="1")
    digest = execute.code_digest(notebook)
    notebook.cells.append(nbformat.v4.new_markdown_cell("text"))
    notebook.cells[0].outputs = []
    assert execute.code_digest(notebook) == digest
    notebook.cells[0].source = "2"
    assert execute.code_digest(notebook) != digest


def test_names_of_the_machine_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(execute.socket, "gethostname", lambda: "box17")
    monkeypatch.setattr(execute.getpass, "getuser", lambda: "ida")
    for text, names in ((f"in {tmp_path}/runs", [str(tmp_path)]), ("by ida", ["ida"]), ("of box17:", ["box17"])):
        assert execute.machine_names(output_of(output_type="stream", name="stdout", text=text), tmp_path) == names
        data = {"text/plain": text, "image/png": "ida"}
        assert execute.machine_names(output_of(output_type="display_data", data=data), tmp_path) == names
    clean = output_of(output_type="stream", name="stdout", text="candidates in runs/elsewhere, box 17")
    assert execute.machine_names(clean, tmp_path) == []


@pytest.mark.slow
def test_the_notebooks_run(tmp_path):
    """In one folder, as a user runs them one after the other; a cell that fails raises."""
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        stored = [len(cell.get("outputs", [])) for cell in notebook.cells]
        execute.execute(notebook, tmp_path)
        execute.tidy(notebook)
        assert execute.machine_names(notebook, tmp_path) == []
        assert [len(cell.get("outputs", [])) for cell in notebook.cells] == stored, path.name


@pytest.mark.slow
def test_the_notebooks_run_on_own_data(tmp_path):
    """The places that the first cells name are there: a folder for each person, a photo, and features."""
    world = write_pedestrians(
        tmp_path / "world", train_identities=56, test_identities=1, cameras=2, images_per_camera=2
    )
    crops = tmp_path / "path/to/your/crops"
    for image in (world.root / "bounding_box_train").glob("*.jpg"):
        (crops / f"person {image.name[:4]}").mkdir(parents=True, exist_ok=True)
        shutil.copy(image, crops / f"person {image.name[:4]}" / image.name)
    (tmp_path / "path/to/a").mkdir()
    shutil.copy(next((world.root / "query").glob("*.jpg")), tmp_path / "path/to/a/photo.jpg")
    rng, ids = np.random.default_rng(0), np.repeat(np.arange(10), 4)
    for name in "ab":
        features = {"query": rng.normal(size=(40, 8)), "gallery": rng.normal(size=(40, 8))}
        labels = {f"{side}_ids": ids for side in "qg"} | {f"{side}_cameras": np.arange(40) % 4 for side in "qg"}
        np.savez(tmp_path / f"path/to/{name}.npz", **features, **labels)
    for path in NOTEBOOKS:
        execute.execute(nbformat.read(path, as_version=4), tmp_path)
    assert not (tmp_path / "runs/elsewhere").exists()
