"""The rooms of the package import in one direction, and no files import each other in a circle."""

import ast
import re
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "modeling_mllmreid"
# A room imports itself and the rooms before it.
ROOMS = (
    "utils",
    "model",
    "synthetic",
    "data",
    "text",
    "retrieval",
    "options",
    "evaluation",
    "hub",
    "training",
    "gallery",
    "serving",
    "research",
    "commands",
)
RESEARCH_COMMANDS = {"commands.ablate", "commands.align", "commands.demo", "commands.parts"}
FILES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}


def imported_files(name: str, *, top_level: bool = False) -> set[str]:
    """The package's files that a file imports: by any of its lines, or only by those that run at its import."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    nodes = tree.body if top_level else list(ast.walk(tree))
    folder = name.split(".")[:-1]
    found = set()
    for alias in (alias for node in nodes if isinstance(node, ast.Import) for alias in node.names):
        package, *target = alias.name.split(".")
        if package == PACKAGE.name:
            candidates = (".".join(target), ".".join([*target, "__init__"]))
            found.add(next(candidate for candidate in candidates if candidate in FILES))
    for node in (node for node in nodes if isinstance(node, ast.ImportFrom)):
        module = node.module.split(".") if node.module else []
        if node.level:
            target = [*folder[: len(folder) - node.level + 1], *module]
        elif module and module[0] == PACKAGE.name:
            target = module[1:]
        else:
            continue
        for alias in node.names:
            candidates = (".".join([*target, alias.name]), ".".join(target), ".".join([*target, "__init__"]))
            found.add(next(candidate for candidate in candidates if candidate in FILES))
    return found


def room_of(name: str) -> str:
    return name.partition(".")[0]


def test_imports_by_name_are_in_four_files():
    """Where a module is imported by a text, the checks below do not see it."""
    importing = {
        name for name in FILES if re.search(r"import_module|__import__", FILES[name].read_text(encoding="utf-8"))
    }
    assert importing == {"__init__", "auto_classes", "commands.main", "model.__init__"}


@pytest.mark.parametrize(
    ("line", "imported"),
    [
        ("import modeling_mllmreid.training.trainer", "training.trainer"),
        ("import modeling_mllmreid.research as research", "research.__init__"),
        ("from modeling_mllmreid.commands import train", "commands.train"),
        ("from ..training.trainer import ReIDTrainer", "training.trainer"),
        ("if TYPE_CHECKING:\n    from ..research import demo", "research.demo"),
    ],
)
def test_every_form_of_an_import_is_seen(line, imported, tmp_path, monkeypatch):
    (tmp_path / "sampler.py").write_text(line)
    monkeypatch.setitem(FILES, "data.sampler", tmp_path / "sampler.py")
    assert imported_files("data.sampler") == {imported}


def test_every_folder_is_a_room_in_the_order():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert folders == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_the_rooms_before_it(room):
    allowed = {"model"} if room == "model" else set(ROOMS[: ROOMS.index(room) + 1])
    for name in (name for name in FILES if room_of(name) == room):
        assert {room_of(other) for other in imported_files(name)} <= allowed, name


def test_only_three_commands_import_research():
    importing = {name for name in FILES if "research" in {room_of(other) for other in imported_files(name)}}
    assert {name for name in importing if room_of(name) != "research"} == RESEARCH_COMMANDS


def test_no_command_imports_another_command():
    shared = {"commands.__init__", "commands.main"}
    for name in FILES.keys() - shared:
        others = {other for other in imported_files(name) if room_of(other) == "commands"} - shared
        assert room_of(name) != "commands" or not others, name


@pytest.mark.parametrize("command", ["embed", "search", "evaluate", "export", "gallery", "serve", "push"])
def test_only_a_training_imports_the_trainer(command):
    """Its import, which brings PEFT and bitsandbytes, takes more than a second."""
    reached, ahead = set(), {f"commands.{command}", "training.loading"}
    while ahead:
        reached |= ahead
        ahead = set().union(*(imported_files(name, top_level=True) for name in ahead)) - reached
    assert not reached & {"training.arguments", "training.trainer"}


def test_no_circles():
    try:
        tuple(TopologicalSorter({name: imported_files(name, top_level=True) for name in FILES}).static_order())
    except CycleError as error:
        pytest.fail(f"these files import each other: {error.args[1]}")


def test_the_model_imports_only_torch_and_transformers():
    """The model code runs from the Hub without this package; other libraries are imported where they are used."""
    allowed = {
        *sys.stdlib_module_names,
        "torch",
        "transformers",
        "safetensors",
        "huggingface_hub",
        "PIL",
        "numpy",
        "tqdm",
    }
    for name in (name for name in FILES if room_of(name) == "model"):
        tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
        modules = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
        modules += [str(n.module) for n in tree.body if isinstance(n, ast.ImportFrom) and not n.level]
        assert {module.partition(".")[0] for module in modules} <= allowed, name
        relative = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
        assert all(node.level == 1 and node.module and "." not in node.module for node in relative), name


def test_no_file_imports_from_its_own_package():
    """An `__init__` serves other packages; the files of its own package do not import it."""
    for name in FILES:
        package = name.rpartition(".")[0]
        assert f"{package}.__init__" not in imported_files(name) and "__init__" not in imported_files(name), name
