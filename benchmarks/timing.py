"""Timing for the benchmarks of encoding, training and scaling: alternating turns, paired ratios, the table of results.

The speed of a machine drifts, and other programs use it. So both sides of a ratio take turns. The ratio is the median
over pairs of neighbouring turns, with the quartiles.
"""

import argparse
import datetime
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def add_arguments(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Adds the common options `--repeats`, `--device`, `--threads` and `--append`."""
    parser.add_argument("--repeats", type=int, default=repeats, help="turns that count, after the warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of an operation")
    parser.add_argument("--append", type=Path, help="append the ratios to this table, such as RESULTS.md")


def now(device: str) -> float:
    """Returns seconds: the clock after the GPU has finished its work, or the CPU time of this process.

    CPU time does not depend on other programs.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def alternate(functions: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Returns the seconds of each function in each turn. Every other turn runs backwards; two turns are the warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for turn in range(repeats + 2):
        for name in list(functions)[:: 1 if turn % 2 else -1]:
            start = now(device)
            functions[name]()
            seconds[name].append(now(device) - start)
    return {name: values[2:] for name, values in seconds.items()}


class Results:
    """Prints each result at once, and appends all of them to a table at the end."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.lines: list[tuple[str, str, str, str]] = []

    def ratio(self, name: str, ours: Sequence[float], floor: Sequence[float], target: float | None = None) -> None:
        """Adds the median and the quartiles of ours / floor over the turns."""
        low, middle, high = np.percentile(np.array(ours) / np.array(floor), [25, 50, 75])
        limit, met = ("", None) if target is None else (f"<= {target:g}", middle <= target)
        self.add(name, f"{middle:.3f} [{low:.3f}, {high:.3f}]", limit, met)

    def add(self, name: str, value: str, target: str = "", met: bool | None = None) -> None:
        """Adds any other value, and whether it meets its target."""
        self.lines.append((name, value, target, {None: "", True: "met", False: "missed"}[met]))
        print(f"{name:72} {value:24} {' '.join(self.lines[-1][2:])}", flush=True)

    def skip(self, name: str, reason: str) -> None:
        """Prints a measurement that does not run on this machine; the table leaves it out."""
        print(f"{name}: not run, {reason}", flush=True)

    def append(self) -> None:
        """Appends the results to the table of `--append`."""
        if self.args.append is None or not self.lines:
            return
        provenance = (datetime.date.today().isoformat(), hardware(self.args.device), commit(), f"`{command()}`")
        with self.args.append.open("a", encoding="utf-8") as file:
            file.writelines("| " + " | ".join((*line, *provenance)) + " |\n" for line in self.lines)


def hardware(device: str) -> str:
    """Returns the hardware in a few words."""
    if device == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{len(os.sched_getaffinity(0))} CPU cores, {processor()}"


def processor() -> str:
    """Returns the name of the processor, and its vector instructions, on which ratios depend."""
    lines = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    name = (
        lines.partition("model name")[2].partition("\n")[0].lstrip("\t :")
        or platform.processor()
        or "unknown processor"
    )
    flags = lines.partition("flags")[2].partition("\n")[0].split()
    known = {"amx_tile": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2"}
    return name + next((f" with {title}" for flag, title in known.items() if flag in flags), "")


def commit() -> str:
    """Returns the commit of the working tree, with a plus sign if Python files differ from it."""
    git = ["git", "-C", str(HERE)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--", ":/*.py"], capture_output=True, text=True).stdout
    return name + ("+" if changed else "")


def command() -> str:
    """Returns the command line without paths of this machine."""
    words = sys.argv[1:]
    for flag in ("--append", "--backbone"):
        if flag in words:
            index = words.index(flag)
            words = words[:index] + words[index + 2 :]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
