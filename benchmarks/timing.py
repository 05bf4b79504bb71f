"""What the benchmarks of encoding, training and scaling share: alternating timing, paired ratios, the table of results.

A machine's speed drifts, and others work on it. So the sides of a ratio take turns, and the ratio is the median over
the turns, each against its neighbour, with the quartiles beside it.
"""

import argparse
import datetime
import os
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
    """`--repeats`, `--device`, `--threads` and `--append`, which every one of these benchmarks takes."""
    parser.add_argument("--repeats", type=int, default=repeats, help="turns that count, after a warm-up")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the processor, for every operation")
    parser.add_argument("--append", type=Path, help="a table like RESULTS.md that the ratios are appended to")


def now(device: str) -> float:
    """Seconds: of the clock once the GPU has done all that it was told, or else of the processor in this process.

    Processor time is what the clock would show on a quiet machine, and other programs take nothing from it.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def alternate(ways: Mapping[str, Callable[[], object]], repeats: int, device: str) -> dict[str, list[float]]:
    """Seconds of each way in each turn. Every other turn goes backwards; two turns before are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 2):
        for name in list(ways)[:: 1 if turn % 2 else -1]:
            start = now(device)
            ways[name]()
            seconds[name].append(now(device) - start)
    return {name: values[2:] for name, values in seconds.items()}


class Results:
    """Ratios as they are measured: printed at once, and at the end appended to a table."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.rows: list[tuple[str, str, str, str]] = []

    def ratio(self, what: str, ours: Sequence[float], floor: Sequence[float], target: float | None = None) -> None:
        """The median and the quartiles of ours / floor, turn by turn."""
        low, middle, high = np.percentile(np.array(ours) / np.array(floor), [25, 50, 75])
        told, met = ("", None) if target is None else (f"<= {target:g}", middle <= target)
        self.add(what, f"{middle:.3f} [{low:.3f}, {high:.3f}]", told, met)

    def add(self, what: str, value: str, target: str = "", met: bool | None = None) -> None:
        """Any other number, and whether its target is met."""
        self.rows.append((what, value, target, {None: "", True: "met", False: "missed"}[met]))
        print(f"{what:72} {value:24} {' '.join(self.rows[-1][2:])}", flush=True)

    def skip(self, what: str, why: str) -> None:
        """Says what is not measured here; the table does not."""
        print(f"{what}: not run, {why}", flush=True)

    def append(self) -> None:
        """Writes the rows where `--append` says."""
        if self.args.append is None:
            return
        where = (datetime.date.today().isoformat(), hardware(self.args.device), commit(), f"`{command()}`")
        with self.args.append.open("a", encoding="utf-8") as file:
            file.writelines("| " + " | ".join((*row, *where)) + " |\n" for row in self.rows)


def hardware(device: str) -> str:
    """In a few words."""
    if device == "cuda":
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{len(os.sched_getaffinity(0))} CPU cores, no GPU"


def commit() -> str:
    """Of the working tree, with a plus sign where Python files differ from it."""
    git = ["git", "-C", str(HERE)]
    name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--", ":/*.py"], capture_output=True, text=True).stdout
    return name + ("+" if changed else "")


def command() -> str:
    """What was called, without this machine's paths: where the results go, and where the model lay."""
    words = sys.argv[1:]
    for flag in ("--append", "--backbone"):
        if flag in words:
            at = words.index(flag)
            words = words[:at] + words[at + 2 :]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
