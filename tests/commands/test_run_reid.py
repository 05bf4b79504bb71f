"""run_reid.py itself: its table of contents without heavy imports, its exit codes, its one-line errors."""

import importlib
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "run_reid.py"


def run(monkeypatch, *argv):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *argv])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return end.value.code


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = (
        "import sys, runpy; sys.argv = ['run_reid.py', '--help']\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'yaml', 'modeling_mllmreid'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in ("demo", "train", "evaluate", "continuations", "embed", "search"):
        assert f"\n  {command} " in done.stdout


def test_every_command_of_the_table_has_its_main():
    commands = runpy.run_path(str(SCRIPT))["COMMANDS"]
    assert all(callable(importlib.import_module(module).main) for module, _ in commands.values())


def test_unknown_command_names_the_nearest(monkeypatch, capsys):
    assert run(monkeypatch, "evalute") == 2
    assert capsys.readouterr().err == "error: unknown command 'evalute': did you mean 'evaluate'?\n"


def test_user_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys):
    assert run(monkeypatch, "embed", "--modle", "x") == 2
    assert capsys.readouterr().err == "error: embed: unknown field '--modle': did you mean '--model'?\n"


def test_interrupt_gives_130(monkeypatch, capsys):
    from modeling_mllmreid.commands import embed

    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(embed, "main", interrupted)
    assert run(monkeypatch, "embed") == 130
    assert capsys.readouterr().err == "interrupted\n"
