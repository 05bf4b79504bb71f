"""The command line: its table of commands without heavy imports, its exit codes, its one-line errors."""

import importlib
import io
import logging
import os
import runpy
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image

import modeling_mllmreid
from modeling_mllmreid.commands.main import COMMANDS, SHARED
from modeling_mllmreid.options.help_text import program_name
from modeling_mllmreid.utils.errors import UserError

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "run_reid.py"


def run(monkeypatch, *argv):
    for owner, name in ((threading, "excepthook"), (sys, "unraisablehook"), (logging, "raiseExceptions")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *argv])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return end.value.code


# The script, the module, and the function of the installed command.
COMMAND = "from modeling_mllmreid.commands.main import main; sys.exit(main())"
WAYS = {
    "run_reid.py": f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')",
    "python -m modeling_mllmreid": "import runpy; runpy.run_module('modeling_mllmreid', None, '__main__', True)",
    "mllmreid": COMMAND,
}


def test_the_script_the_module_and_the_command_are_one_program_without_heavy_imports():
    answers = {}
    for program, code in WAYS.items():
        check = (
            f"import sys; sys.argv = [{program!r}, '--help']\n"
            f"try: {code}\n"
            "except SystemExit as end: assert end.code == 0, end.code\n"
            "heavy = {'torch', 'transformers', 'numpy', 'PIL', 'yaml', 'pydantic'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"usage: {program} COMMAND")
        answers[program] = done.stdout.replace(program, "PROGRAM")
    assert len(set(answers.values())) == 1
    for command in ("demo", "train", "evaluate", "continuations", "embed", "search"):
        assert f"\n  {command} " in answers["mllmreid"]


def test_every_way_gives_the_version_and_the_same_exit_code():
    for flags, code, out, err in (
        (["--version"], 0, f"mllmreid {modeling_mllmreid.__version__}\n", ""),
        (["evalute"], 2, "", "error: unknown command 'evalute': did you mean 'evaluate'?\n"),
    ):
        script, module = [str(SCRIPT)], ["-m", "modeling_mllmreid"]
        for way in (script, module, ["-c", f"import sys; {COMMAND}"]):
            done = subprocess.run([sys.executable, *way, *flags], capture_output=True, text=True, cwd=ROOT)
            assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


def test_the_script_holds_no_logic():
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) < 10


def test_every_command_of_the_table_has_its_main_and_prints_its_fields(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            importlib.import_module(f"modeling_mllmreid.commands.{name}").main(["--help"])
        assert end.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: {program_name()} {name} [")


def test_unknown_command_names_the_nearest(monkeypatch, capsys):
    assert run(monkeypatch, "evalute") == 2
    assert capsys.readouterr().err == "error: unknown command 'evalute': did you mean 'evaluate'?\n"


def test_user_mistake_is_one_line_and_exit_code_2(monkeypatch, capsys):
    assert run(monkeypatch, "embed", "--modle", "x") == 2
    assert capsys.readouterr().err == "error: embed: unknown field '--modle': did you mean '--model'?\n"


def test_a_command_that_does_not_share_its_work_refuses_several_processes(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for command in sorted(COMMANDS.keys() - SHARED):
        assert run(monkeypatch, command, "--output", "/x") == 2
        said = capsys.readouterr().err
        assert said == f"error: {command} runs in one process, and WORLD_SIZE is 2: start it without the launcher\n"
    for command in sorted(SHARED - {"gallery"}):
        assert run(monkeypatch, command, "--no_such_field", "x") == 2
        assert "unknown field '--no_such_field'" in capsys.readouterr().err


def test_another_version_of_a_library_is_one_line_and_exit_code_2(tmp_path):
    (tmp_path / "transformers.py").write_text("__version__ = '5.17.0'\nAutoConfig = AutoModel = AutoProcessor = None\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    command = [sys.executable, str(SCRIPT), "search", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    message = "transformers>=5.23,<6; installed: transformers 5.17.0: pip install 'transformers>=5.23,<6'"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: MLLMReID needs {message}\n")


def test_interrupt_gives_130(monkeypatch, capsys):
    from modeling_mllmreid.commands import embed

    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(embed, "main", interrupted)
    assert run(monkeypatch, "embed") == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (TypeError("two\nlines \x1b[2J"), r"TypeError: two\nlines \x1b[2J"),
        (MemoryError(), "MemoryError: "),
        (RecursionError("x" * 100_000), "RecursionError: " + "x" * 284),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (BrokenPipeError(32, "Broken pipe"), "BrokenPipeError: [Errno 32] Broken pipe"),
        (ExceptionGroup("several", [KeyError("a")]), "ExceptionGroup: several (1 sub-exception)"),
    ],
)
def test_an_unexpected_error_is_one_line_a_traceback_file_and_exit_code_70(monkeypatch, capsys, tmp_path, error, line):
    monkeypatch.setattr("modeling_mllmreid.commands.embed.main", raiser(error))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run(monkeypatch, "embed") == 70
    (path,) = tmp_path.iterdir()
    where = f"the traceback is in {path}: please report it"
    assert capsys.readouterr() == ("", f"error: a fault of MLLMReID, not yours: {line} ({where})\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert f"{type(error).__name__}" in path.read_text() and "raiser" in path.read_text()


def test_the_line_reports_a_traceback_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    class Unprintable(Exception):
        def __str__(self):
            raise ValueError

    monkeypatch.setattr("modeling_mllmreid.commands.embed.main", raiser(Unprintable()))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    assert run(monkeypatch, "embed") == 70
    line = "error: a fault of MLLMReID, not yours: Unprintable (the traceback could not be written: "
    assert capsys.readouterr().err == f"{line}please report this line)\n"


def test_a_full_disk_is_not_a_fault_of_the_package(monkeypatch, capsys):
    error = OSError(28, "No space left on device", "runs/a")
    monkeypatch.setattr("modeling_mllmreid.commands.embed.main", raiser(error))
    assert run(monkeypatch, "embed") == 2
    assert capsys.readouterr().err == "error: the disk is full ('runs/a'): free some space and run the command again\n"


def test_a_message_of_many_lines_is_one_bounded_line(monkeypatch, capsys):
    error = UserError("a\n  b\r\n\x1b[2J \udce9 \u202e " + "x" * 100_000 + " the fix")
    monkeypatch.setattr("modeling_mllmreid.commands.embed.main", raiser(error))
    assert run(monkeypatch, "embed") == 2
    message = capsys.readouterr().err
    assert message.startswith("error: a b \\x1b[2J \\udce9 \\u202e xxx") and message.endswith("xxx the fix\n")
    assert len(message) < 1020 and message[:-1].isprintable()


def test_a_closed_pipe_and_a_full_output_end_without_a_traceback():
    reader, closed = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for output, code, message in ((closed, 141, ""), (full, 2, "error: the disk is full: ")):
        done = subprocess.run([sys.executable, str(SCRIPT), "--help"], stdout=output, stderr=subprocess.PIPE, text=True)
        os.close(output)
        assert done.returncode == code and done.stderr.startswith(message) and done.stderr.count("\n") <= 1, done.stderr


def test_an_ascii_output_accepts_every_file_name():
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LANG": "C"}
    command = [sys.executable, str(SCRIPT), b"\xe9\xff\xd7\x90"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown command '") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(("terminal", "switched_off"), [(True, None), (False, "1")])
def test_libraries_show_progress_bars_on_a_terminal_only(monkeypatch, terminal, switched_off):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(os, "environ", {})
    assert run(monkeypatch, "--help") == 0
    names = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    assert [os.environ.get(name) for name in names] == [switched_off] * 2


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_sleep_early_unless_the_user_says_how_they_wait(monkeypatch, given, expected):
    monkeypatch.setattr(os, "environ", dict(given))
    assert run(monkeypatch, "--help") == 0
    assert os.environ.get("GOMP_SPINCOUNT") == expected


def test_torch_is_imported_after_its_threads_are_told_how_to_wait():
    code = "import sys, modeling_mllmreid.commands.main; sys.exit('torch' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def raiser(error):
    def raiser(argv):
        raise error

    return raiser


def test_only_the_owner_can_read_what_commands_write(monkeypatch, capsys, tmp_path):
    people = tmp_path / "people"
    for number, person in enumerate(("anna", "ben", "cleo", "dora")):
        (people / person).mkdir(parents=True)
        for image in range(2):
            Image.new("RGB", (8, 16), (60 * number, 90 * image, 7)).save(people / person / f"{image}.png")
    before = os.umask(0o022)
    try:
        data = ["--dataset", "folders", "--data_dir", str(people)]
        assert run(monkeypatch, "data", *data, "--output_dir", str(tmp_path / "data")) == 0
        assert run(monkeypatch, "prepare", *data, "--output", str(tmp_path / "prepared")) == 0
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    written = [people / "splits.json", *(tmp_path / "data").rglob("*"), *(tmp_path / "prepared").rglob("*")]
    assert len(written) >= 7
    assert {path.name for path in written if path.stat().st_mode & 0o077} == set()


def test_bitsandbytes_does_not_ask_for_a_package_that_downloads_code(monkeypatch):
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    monkeypatch.setattr(logger, "level", logging.NOTSET)
    assert run(monkeypatch, "--version") == 0
    assert not logger.isEnabledFor(logging.WARNING) and logger.isEnabledFor(logging.ERROR)
