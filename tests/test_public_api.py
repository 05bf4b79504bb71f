"""The public API: it is lazy, it agrees with itself, and each name is documented with an example that runs."""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import modeling_mllmreid

NAMES = modeling_mllmreid.__all__
# Names whose docstring is not complete yet.
HAS_MODELS = """
from transformers import AutoConfig, AutoModel, AutoProcessor
from modeling_mllmreid import MllmReIDConfig, MllmReIDModel, MllmReIDVisionModel
assert type(AutoConfig.for_model("mllmreid")) is MllmReIDConfig
assert AutoModel._model_mapping[MllmReIDConfig] is MllmReIDModel
assert AutoModel._model_mapping[MllmReIDVisionModel.config_class] is MllmReIDVisionModel
"""


def run_fresh(code: str) -> None:
    """Runs code in a new process, which must succeed."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def sections(name: str) -> set[str]:
    """The sections of a public object's own docstring."""
    return set(re.findall(r"^(\w+):", inspect.cleandoc(getattr(modeling_mllmreid, name).__doc__ or ""), re.MULTILINE))


def test_the_import_loads_neither_torch_nor_transformers():
    run_fresh(
        "import sys, modeling_mllmreid\n"
        "loaded = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "assert 'evaluate_retrieval' in dir(modeling_mllmreid)"
    )


@pytest.mark.parametrize(
    "first, second",
    (
        ("transformers", "modeling_mllmreid"),
        # A file of the model that imports transformers itself.
        pytest.param("modeling_mllmreid.model.adapters", "transformers", marks=pytest.mark.slow),
    ),
)
def test_the_auto_classes_know_the_models(first, second):
    run_fresh(f"import {first}\nimport {second}\n{HAS_MODELS}")


@pytest.mark.slow
def test_a_search_for_transformers_does_not_lose_the_registration():
    """Libraries such as accelerate look for transformers before anything imports it."""
    search = "import importlib.util\nimport modeling_mllmreid\nassert importlib.util.find_spec('transformers')"
    left = "import sys\nassert not [finder for finder in sys.meta_path if 'AfterTransformers' in str(finder)]"
    run_fresh(f"{search}\n{HAS_MODELS}\n{left}")


def test_names_that_need_the_models_import_transformers_first_and_register():
    """Threads that import transformers and a name at once lock the modules in the same order."""
    run_fresh(
        "import importlib, modeling_mllmreid\n"
        "order, real = [], importlib.import_module\n"
        "importlib.import_module = lambda name, *rest, **more: order.append(name) or real(name, *rest, **more)\n"
        "modeling_mllmreid.evaluate_retrieval, modeling_mllmreid.image_relevance\n"
        "names = [name for name in order if name in ('.evaluation.metrics', 'transformers', '.evaluation.relevance')]\n"
        "assert names == ['.evaluation.metrics', 'transformers', '.evaluation.relevance'], order\n" + HAS_MODELS
    )


def test_type_checkers_know_the_public_names_alone(tmp_path):
    (tmp_path / "user.py").write_text(
        "import modeling_mllmreid as m\nreveal_type(m.evaluate_retrieval)\nm.evaluate_retreival\n"
    )
    # Reads this package alone: the libraries that it imports have no part in its names, and torch takes half a minute.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\nfollow_imports = skip\n[mypy-modeling_mllmreid.*]\nfollow_imports = silent\n"
    )
    result = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", os.devnull, "user.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(Path(str(modeling_mllmreid.__file__)).parents[1])},
    )
    assert "RetrievalMetrics" in result.stdout and 'no attribute "evaluate_retreival"' in result.stdout, result.stdout


def test_the_lists_of_names_agree():
    tree = ast.parse(Path(str(modeling_mllmreid.__file__)).read_text(encoding="utf-8"))
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names}
    assert typed == modeling_mllmreid._MODULES
    assert sorted(NAMES) == NAMES == list(modeling_mllmreid._MODULES)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="modeling_mllmreid.* has no attribute 'evaluate_retreival'"):
        _ = modeling_mllmreid.evaluate_retreival


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_has_its_sections(name):
    value = getattr(modeling_mllmreid, name)
    expected = {"Args", "Example"}
    if inspect.isfunction(value):
        expected |= {"Returns"}
        if "raise " in inspect.getsource(value):
            expected |= {"Raises"}
        documented = re.findall(
            r"^    (?:\*\*(?=\w+:)|(?=\w+ \())(\w+)", inspect.cleandoc(value.__doc__ or ""), re.MULTILINE
        )
        assert documented == list(inspect.signature(value).parameters)
    assert expected <= sections(name), name


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    value = getattr(modeling_mllmreid, name)
    module = importlib.import_module(value.__module__)
    tests = doctest.DocTestFinder(recurse=False).find(value, name, module=module)
    examples = [example for test in tests for example in test.examples]
    assert examples
    assert not any(doctest.SKIP in example.options for example in examples)
    output = io.StringIO()
    runner = doctest.DocTestRunner(verbose=False)
    for test in tests:
        with contextlib.redirect_stderr(io.StringIO()):
            runner.run(test, out=output.write, clear_globs=False)
    assert runner.failures == 0, output.getvalue()
