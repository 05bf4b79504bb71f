"""What `--help` prints: the fields of a command by concern, those that matter first, and the others on request."""

import sys
from pathlib import Path


def program_name() -> str:
    """The program as it was called: the command `mllmreid`, the script `run_reid.py`, or the module by `python -m`."""
    name = Path(sys.argv[0]).name
    return "python -m modeling_mllmreid" if name == "__main__.py" else name
