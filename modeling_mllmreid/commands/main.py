"""The command line: runs a command, and turns every error into one line and an exit code."""

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
from ..utils.errors import UserError

# Each command is the module of its name in this folder.
COMMANDS = {
    "demo": "train and evaluate a tiny model on rendered pedestrians; needs no network and no GPU",
    "train": "train a model on a data set; keeps the best checkpoint",
    "evaluate": "compute mAP, CMC and mINP of a model on query and gallery",
    "calibrate": "choose the threshold of a checkpoint again, on labelled people of your own site",
    "data": "count a data set, and compare the counts with the published ones",
    "prepare": "write a data set as Parquet with its card; can upload it to the Hub",
    "caption": "generate captions for the images that have none, with a multimodal LLM",
    "continuations": "generate a continuation of every caption, with the frozen LLM",
    "compose": "make a LLaVA out of a vision encoder and a language model, with a new projector",
    "align": "teach the image tokens of a composed LLaVA the words of captions",
    "parts": "make a small LLaVA from nothing, out of packages that carry weights or out of the Hub",
    "ablate": "repeat the comparisons of the paper over seeds; writes a report",
    "convert": "make a vision form of a published ReID checkpoint",
    "export": "write a checkpoint for publication (full, thin or vision), or the LLaVA inside it (native)",
    "push": "upload an exported checkpoint with its card to the Hub; private by default",
    "embed": "embed a folder of person crops",
    "search": "find the embedded images that are most similar to a query image",
    "gallery": "add person crops to a gallery, search them by photo or words, and erase them for good",
    "serve": "serve a gallery over HTTP, with the model loaded once",
    "page": "write a private Hugging Face Space with the page of a gallery in a bucket; can upload it",
    "configs": "list the shipped recipes and launch configurations, or print the path of one",
}

# Commands whose processes share the work, if a launcher starts several.
SHARED = frozenset({"train", "evaluate", "calibrate", "caption", "continuations", "embed", "gallery"})

USER_MISTAKE, OUR_FAULT, INTERRUPTED, PIPE_CLOSED = 2, 70, 130, 141


def usage_text() -> str:
    """Returns the usage and one line for each command."""
    program = program_name()
    usage = f"usage: {program} COMMAND [recipe or config.yaml] [--field value ...]"
    lines = [f"  {name:<14} {line}" for name, line in COMMANDS.items()]
    return "\n".join([usage, "", *lines, "", f"`{program} COMMAND --help` lists the fields of a command."])


def main() -> int:
    """Runs the command that `sys.argv` names; prints every error as one line on stderr.

    Returns:
        `int`: The exit code: 0 on success, 2 for a mistake of the user, 70 for a fault of this package, 130 after an
        interrupt, 141 if the reader of the output has closed it, 143 if SIGTERM stopped a training.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names need not be UTF-8, and the terminal's encoding may be ASCII.
            stream.reconfigure(errors="backslashreplace")
    if sys.stderr is None or not sys.stderr.isatty():
        # Show progress bars on a terminal only. The libraries read these variables at import.
        for library in ("HF_HUB", "HF_DATASETS"):
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    spin_shortly()
    silence_libraries()
    try:
        code = run(sys.argv[1:])
        if sys.stdout is not None:
            # Flush here: at the exit of the interpreter, a failure prints a traceback.
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError as error:
        closed = [stream for stream in (sys.stdout, sys.stderr) if is_closed_pipe(stream)]
        for stream in closed:
            discard(stream)
        return PIPE_CLOSED if closed else report_fault(error)
    except Exception as error:
        return report_fault(error)


def run(arguments: list[str]) -> int:
    """Runs a command, or prints the usage. Returns the exit code; raises every error but UserError and ImportError."""
    command, *argv = arguments or ["--help"]
    if command in ("-h", "--help", "help"):
        print(usage_text())
        return 0
    if command == "--version":
        print(f"mllmreid {sys.modules['modeling_mllmreid'].__version__}")
        return 0
    if command not in COMMANDS:
        nearest = (difflib.get_close_matches(command[:80], COMMANDS, n=1, cutoff=0.0) or ["--help"])[0]
        print(f"error: unknown command {command[:80]!r}: did you mean {nearest!r}?", file=sys.stderr)
        return USER_MISTAKE
    try:
        # Imported here, because the libraries of a command take seconds to import.
        from ..utils.outputs import owner_only
        from ..utils.processes import refuse_several_processes

        if command not in SHARED:
            refuse_several_processes(command, os.environ)
        module = importlib.import_module(f"{__package__}.{command}")
        # Results, logs and weights identify people: only the owner may read them, whichever library writes them.
        with owner_only():
            module.main(argv)
    except ImportError as error:
        # A library is missing or has an incompatible version. Some are imported where they are used.
        print(f"error: {' '.join(str(error).split())[:300]}", file=sys.stderr)
        return USER_MISTAKE
    except UserError as error:
        from ..utils.processes import claim_message

        if claim_message(str(error)):
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def report_fault(error: Exception) -> int:
    """Prints an unexpected exception as one line, writes its traceback to a new file, returns the exit code."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = "" if error.filename is None else f" ({ascii(error.filename)[:200]})"
        print(f"error: the disk is full{where}: free some space and run the command again", file=sys.stderr)
        discard(sys.stdout)
        return USER_MISTAKE
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:
        text = type(error).__name__
    text = text[:300].encode("unicode_escape").decode()
    try:
        # A unique file that only the owner can read: a traceback may hold the names of files.
        handle, path = tempfile.mkstemp(prefix="mllmreid-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{sys.argv!r}\n{''.join(traceback.format_exception(error))}")
        where = f"the traceback is in {path}: please report it"
    except Exception:
        where = "the traceback could not be written: please report this line"
    print(f"error: a fault of MLLMReID, not yours: {text} ({where})", file=sys.stderr)
    return OUR_FAULT


def spin_shortly() -> None:
    """Makes idle threads of OpenMP sleep early, unless the environment says how they wait; torch reads it at import.

    Where other programs use the cores, a thread that spins keeps the one that it waits for from running.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def silence_libraries() -> None:
    """Suppresses a warning of bitsandbytes, and tracebacks of threads, finalizers and log handlers of the libraries.

    A thread that failed gets one line.
    """
    logging.raiseExceptions = False
    # It warns at import that a package for a faster CPU kernel is missing. That package downloads code from the Hub.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    threading.excepthook = warn_about_thread
    sys.unraisablehook = lambda args: None


def warn_about_thread(args: threading.ExceptHookArgs) -> None:
    """Prints one line about an exception that ended a thread."""
    if not issubclass(args.exc_type, SystemExit):
        text = f"warning: a thread of a library failed: {args.exc_type.__name__}: {args.exc_value}"
        print(text[:300].encode("unicode_escape").decode(), file=sys.stderr)


def is_closed_pipe(stream: TextIO | None) -> bool:
    """Returns whether a standard stream is a pipe whose reader has closed it."""
    if stream not in (sys.__stdout__, sys.__stderr__) or stream is None:
        return False
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def discard(stream: TextIO | None) -> None:
    """Discards the buffer of a standard stream, so that the exit of the interpreter does not fail on it."""
    if isinstance(stream, io.TextIOWrapper) and stream in (sys.__stdout__, sys.__stderr__):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
