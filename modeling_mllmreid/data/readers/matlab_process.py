"""A program of its own: prints variables of the MATLAB file on its standard input as JSON.

python -I -B matlab_process.py PATHS NAME ... < FILE     PATHS: more folders of packages, a JSON list

`matlab_files` starts it, since scipy's reader ends the whole process at some broken files. Arrays, cells and structs
are nested lists, row by row; a struct is the list of its fields' values, a text the list of its rows.
"""

import contextlib
import json
import os
import sys
import warnings
from typing import Any

CPU_SECONDS = 60
MAX_MEMORY = 2**31
MAX_REPLY = 2**24


def main() -> None:
    """Reads, converts and prints. Any failure is an exit code other than 0, its reason the last line of stderr."""
    paths, *names = sys.argv[1:]
    limit_resources()
    sys.path += json.loads(paths)
    warnings.simplefilter("ignore")
    from scipy.io import loadmat

    found = loadmat(sys.stdin.buffer, variable_names=names)
    text = json.dumps({name: found[name] for name in names if name in found}, default=as_lists)
    if len(text) > MAX_REPLY:
        raise ValueError(f"more than {MAX_REPLY >> 20} MiB of content")
    print(text)


def limit_resources() -> None:
    """A broken length may ask for any memory or time; nothing is written, no core either."""
    # Each thread of a linear algebra library would take address space.
    os.environ |= dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {
        resource.RLIMIT_AS: MAX_MEMORY,
        resource.RLIMIT_CPU: CPU_SECONDS,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in limits.items():
        # Some systems do not limit memory, and a lower limit that is already set cannot be raised.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def as_lists(value: Any) -> Any:
    """What JSON has no kind for: an array or a struct as lists, anything else as nothing."""
    import numpy as np

    return value.tolist() if isinstance(value, np.ndarray | np.void) else None


if __name__ == "__main__":
    main()
