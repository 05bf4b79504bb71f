"""Code that runs on one version of Python but not on the next."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def hiding_variables(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of each comprehension's variable whose name its function also reads from outside itself.

    Python 3.12.1 and, for names of an enclosing function, 3.13.0 take the one for the other: UnboundLocalError.
    """
    for function in ast.walk(tree):
        if isinstance(function, FUNCTIONS):
            outer = _free(function)
            for node in _of_frame(function):
                if isinstance(node, COMPREHENSIONS):
                    yield from ((node.lineno, name) for name in sorted(_targets(node) & outer))


def _free(node: ast.AST) -> set[str]:
    """The names that the node's code reads and does not bind."""
    if isinstance(node, ast.Name):
        return {node.id} if isinstance(node.ctx, ast.Load) else set()
    inside = set().union(*map(_free, ast.iter_child_nodes(node)))
    if isinstance(node, FUNCTIONS):
        return inside - _bound(node)
    if isinstance(node, COMPREHENSIONS):
        return (inside - _targets(node)) | _free(node.generators[0].iter)
    return inside


def _targets(node: ast.AST) -> set[str]:
    """The variables of a comprehension."""
    return {part.id for own in node.generators for part in ast.walk(own.target) if isinstance(part, ast.Name)}


def _of_frame(function: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of the functions and classes in it."""
    left = [function.body] if isinstance(function, ast.Lambda) else [*function.body]
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
            left.extend(ast.iter_child_nodes(node))


def _bound(function: ast.AST) -> set[str]:
    """A function's local variables."""
    names = {node.arg for node in ast.walk(function.args) if isinstance(node, ast.arg)}
    of_comprehensions = set()
    for node in _of_frame(function):
        if isinstance(node, COMPREHENSIONS):
            of_comprehensions |= {id(part) for own in node.generators for part in ast.walk(own.target)}
        match node:
            case ast.Name(id=name, ctx=ast.Store()) if id(node) not in of_comprehensions:
                names.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.ExceptHandler(name=str(name)):
                names.add(name)
            case ast.alias():
                names.add((node.asname or node.name).split(".")[0])
    return names


@pytest.mark.parametrize(
    "code",
    [
        "def f(): return {n: own for n, own in x}, [g for g in x if own(g)]",
        "def f(): return {g for g in x for v in own(g)}, [own for own in x]",
        "def f():\n def own(): pass\n def g(): return [own for own in x], [v for v in x if own(v)]",
        "def f(): return own(1), [own for own in x]",
        "def f(): return [own for own in own(1)]",
        "f = lambda: ([len for len in x], [len(v) for v in x])",
    ],
)
def test_the_check_reports(code):
    assert [name for _, name in hiding_variables(ast.parse(code))] == ["len" if "len" in code else "own"]


@pytest.mark.parametrize(
    "code",
    [
        "def f(): return [own for own in x], [own for own in y]",
        "def f():\n own = 1\n return own, [own for own in x]",
        "def f(own): return own, [own for own in x]",
        "def f():\n for own in x: print(own, [own for own in x])",
    ],
)
def test_the_check_accepts(code):
    assert not list(hiding_variables(ast.parse(code)))


def test_no_comprehension_shadows_a_name_that_its_function_reads():
    files = [ROOT / "run_reid.py"]
    for folder in ("modeling_mllmreid", "tests", "benchmarks"):
        files += (ROOT / folder).rglob("*.py")
    found = [
        f"{file.relative_to(ROOT)}:{line}: {name}"
        for file in files
        for line, name in hiding_variables(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert not found, "rename these variables: " + ", ".join(found)
