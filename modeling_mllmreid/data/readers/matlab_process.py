"""A separate program: reads a MATLAB file from standard input and prints variables as JSON.

python -I -B matlab_process.py PATHS NAME ... < FILE     PATHS: additional folders of packages, a JSON list

`matlab_files` starts this program, because scipy's reader crashes its process on some broken files. Arrays, cells and
structs become nested lists, row by row. A struct becomes the list of its values, and a text the list of its rows.
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
    """Reads, converts and prints. After an error, the exit code is not 0, and the last line of stderr is the reason."""
    paths, *names = sys.argv[1:]
    limit_resources()
    sys.path += json.loads(paths)
    warnings.simplefilter("ignore")
    from scipy.io import loadmat

    variables = loadmat(sys.stdin.buffer, variable_names=names)
    text = json.dumps({name: variables[name] for name in names if name in variables}, default=as_lists)
    if len(text) > MAX_REPLY:
        raise ValueError(f"more than {MAX_REPLY >> 20} MiB of content")
    print(text)


def limit_resources() -> None:
    """Limits memory and time, because a broken file may contain any length, and forbids to write files."""
    # Each thread of a linear algebra library would reserve memory.
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
        # Some systems do not limit memory, and a process cannot raise an existing lower limit.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (value, value))


def as_lists(value: Any) -> Any:
    """Converts an array or a struct to lists, and every other type that JSON does not have to None."""
    import numpy as np

    return value.tolist() if isinstance(value, np.ndarray | np.void) else None


if __name__ == "__main__":
    main()
