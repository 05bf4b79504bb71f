"""The command line: a table of commands, and how every one of them ends."""

import difflib
import errno
import importlib
import io
import logging
import os
import select
import sys
import tempfile
import threading
import traceback
from typing import TextIO

from ..options.help_text import program_name

# Each command is the module of its name in this folder.
COMMANDS = {
    "demo": "the whole road on rendered pedestrians, without network or GPU",
    "train": "train a model on a data set; keeps the best checkpoint",
    "evaluate": "mAP, CMC and mINP of a model on query and gallery",
    "data": "what a data set holds, and whether it is what the papers used",
    "prepare": "write a data set as Parquet with its card, for the Hub too",
    "caption": "let a multimodal LLM describe the images that have no captions",
    "continuations": "let the frozen LLM continue every caption",
    "ablate": "the paper's comparisons over seeds, with contrasts and a report",
    "export": "write a checkpoint as it is published: full, thin or vision",
    "push": "put a checkpoint on the Hub, with its card, private by default",
    "embed": "embed a folder of person crops",
    "search": "find the people of an embedded folder that look like a query",
    "configs": "list the shipped recipes and launch configurations, or print the path of one",
}

USERS_MISTAKE, OUR_FAULT, INTERRUPTED, PIPE_CLOSED = 2, 70, 130, 141


def table_of_contents() -> str:
    """Usage and one line for each command."""
    program = program_name()
    usage = f"usage: {program} COMMAND [recipe or config.yaml] [--field value ...]"
    lines = [f"  {name:<14} {line}" for name, line in COMMANDS.items()]
    return "\n".join([usage, "", *lines, "", f"`{program} COMMAND --help` lists a command's fields."])


def main() -> int:
    """Runs the command that `sys.argv` names; whatever goes wrong is one line on stderr.

    Returns 0 on success, 2 for a user's mistake, 70 for a fault of this package, 130 where interrupted, 141 where the
    reader of the output went away, 143 where SIGTERM stopped a training.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names need not be UTF-8, and the terminal's encoding may be ASCII.
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is None or not sys.stderr.isatty():
        # Progress bars of the libraries are shown on a terminal only. The libraries read this when they are imported.
        for library in ("HF_HUB", "HF_DATASETS"):
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    silence_threads()
    try:
        code = run(sys.argv[1:])
        if sys.stdout is not None:
            # Here and not at the interpreter's end, where a failure has a traceback.
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError as error:
        closed = [stream for stream in (sys.stdout, sys.stderr) if is_closed_pipe(stream)]
        for stream in closed:
            drop(stream)
        return PIPE_CLOSED if closed else report_fault(error)
    except Exception as error:
        return report_fault(error)


def run(arguments: list[str]) -> int:
    """Runs a command, or prints what there is. Returns the exit code; what is no UserError is raised."""
    command, *argv = arguments or ["--help"]
    if command in ("-h", "--help", "help"):
        print(table_of_contents())
        return 0
    if command == "--version":
        print(f"mllmreid {sys.modules['modeling_mllmreid'].__version__}")
        return 0
    if command not in COMMANDS:
        nearest = (difflib.get_close_matches(command[:80], COMMANDS, n=1, cutoff=0.0) or ["--help"])[0]
        print(f"error: unknown command {command[:80]!r}: did you mean {nearest!r}?", file=sys.stderr)
        return USERS_MISTAKE
    try:
        # Only now: the libraries that a command needs take seconds to import.
        from ..utils.errors import UserError
        from ..utils.outputs import owner_only

        module = importlib.import_module(f"{__package__}.{command}")
    except ImportError as error:
        # A library is missing, or of a version that the package does not run with.
        print(f"error: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return USERS_MISTAKE

    try:
        # Results, logs and weights identify people, whichever library writes them.
        with owner_only():
            module.main(argv)
    except UserError as error:
        from ..utils.processes import claim_message

        if claim_message(str(error)):
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def report_fault(error: Exception) -> int:
    """One line on an exception that no command expected, its traceback in a file of its own. Returns the exit code."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = "" if error.filename is None else f" ({ascii(error.filename)[:200]})"
        print(f"error: the disk is full{where}: free some space and run the command again", file=sys.stderr)
        drop(sys.stdout)
        return USERS_MISTAKE
    try:
        what = f"{type(error).__name__}: {error}"
    except Exception:
        what = type(error).__name__
    what = what[:300].encode("unicode_escape").decode()
    try:
        # Its own name and for the owner alone: a traceback may name people's files.
        handle, path = tempfile.mkstemp(prefix="mllmreid-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{sys.argv!r}\n{''.join(traceback.format_exception(error))}")
        where = f"the traceback is in {path}: please report it"
    except Exception:
        where = "the traceback could not be written: please report this line"
    print(f"error: a fault of MLLMReID, not yours: {what} ({where})", file=sys.stderr)
    return OUR_FAULT


def silence_threads() -> None:
    """One line in place of a traceback for what fails in a library's thread, while an object is freed, or in a log."""
    logging.raiseExceptions = False
    threading.excepthook = warn_of_thread
    sys.unraisablehook = lambda args: None


def warn_of_thread(args: threading.ExceptHookArgs) -> None:
    """One line on an exception that ended a thread."""
    if not issubclass(args.exc_type, SystemExit):
        text = f"warning: a thread of a library failed: {args.exc_type.__name__}: {args.exc_value}"
        print(text[:300].encode("unicode_escape").decode(), file=sys.stderr)


def is_closed_pipe(stream: TextIO | None) -> bool:
    """Whether nobody reads what the stream is written to."""
    if stream not in (sys.__stdout__, sys.__stderr__) or stream is None:
        return False
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def drop(stream: TextIO | None) -> None:
    """Sends what a stream still holds nowhere, so that the interpreter's end does not fail on it."""
    if isinstance(stream, io.TextIOWrapper) and stream in (sys.__stdout__, sys.__stderr__):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
