"""Checks the versions of Python, torch and transformers at import, before an error that does not name them."""

import re
import sys

import torch
import transformers

# Lowest version, and the first that is too new. The package's own bounds are in setup.cfg.
NEEDED = {"Python": ("3.11", None), "torch": ("2.6", None), "transformers": ("5.23", "6")}


def check_versions() -> None:
    """Raises ImportError, in one line, with the installed versions, the needed versions and the command to install."""
    installed = {
        "Python": ".".join(map(str, sys.version_info[:3])),
        "torch": str(torch.__version__),
        "transformers": str(transformers.__version__),
    }
    needed = {}
    for name, (lowest, too_new) in NEEDED.items():
        version = _numbers(installed[name])
        if version < _numbers(lowest) or too_new is not None and version >= _numbers(too_new):
            needed[name] = f"{name}>={lowest}" + (f",<{too_new}" if too_new is not None else "")
    if needed:
        here = ", ".join(f"{name} {installed[name]}" for name in needed)
        ranges = " ".join(f"'{bounds}'" for name, bounds in needed.items() if name != "Python")
        fix = f"pip install {ranges}" if ranges else "make an environment with another Python"
        raise ImportError(f"MLLMReID needs {', '.join(needed.values())}; installed: {here}: {fix}")


def _numbers(version: str) -> tuple[int, ...]:
    """Returns the major and minor number of a version."""
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


check_versions()
