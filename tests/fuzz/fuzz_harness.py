"""The rules of the fuzz tests: the allowed outcomes of a hostile input, and the loop that runs and counts examples.

An example succeeds, and then its check holds; or it is refused by an error in one line, and then every file is as it
was before. All else is a violation: another exception, a file left behind or changed, 30 seconds, 2 GiB, the network.
"""

import contextlib
import hashlib
import io
import os
import re
import resource
import shutil
import signal
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.internal.conjecture import providers
from hypothesis.strategies import SearchStrategy

from modeling_mllmreid.utils.errors import UserError

MOST_SECONDS, MOST_BYTES, MOST_CHARACTERS = 30, 2 * 2**30, 1000
TOO_LONG = f"takes more than {MOST_SECONDS} s"
# Examples of all areas together; each area has its share of them.
SHORT, LONG = 500, 10_000
# In an area's `writes`: anything that was not there before.
NEW = "*new*"
# Of the long run alone; the short one is the same every time.
SEED = int(os.environ.get("FUZZ_SEED", "0"))


@dataclass(frozen=True)
class Area:
    """One kind of input. share: of all examples.

    build: writes the input of an example into a folder. act: reads it, and asserts what must hold then. refusals: what
    `act` may raise. writes: what `act` may add to the folder or change in it when it succeeds, by the paths' beginning.
    """

    name: str
    share: float
    strategy: SearchStrategy[Any]
    build: Callable[[Any, Path], None]
    act: Callable[[Any, Path], Any]
    refusals: tuple[type[Exception], ...] = (UserError,)
    writes: tuple[str, ...] = ()


@dataclass
class Outcomes:
    """The outcomes of the examples of an area. violations: description -> count and shortest example."""

    area: str
    examples: int = 0
    refused: int = 0
    seconds: float = 0.0
    violations: dict[str, tuple[int, str]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.area}: {self.examples} examples, {self.examples - self.refused - self.broken} successes, "
            f"{self.refused} refusals, {self.broken} violations, {self.seconds:.0f} s"
        ]
        for what, (count, example) in sorted(self.violations.items()):
            lines.append(f"  {count} x {what}\n      such as {example[:1500]}")
        return "\n".join(lines)

    @property
    def broken(self) -> int:
        return sum(count for count, _ in self.violations.values())

    def add(self, value: Any, violation: str | None) -> None:
        self.examples += 1
        if violation is not None:
            count, shortest = self.violations.get(violation, (0, ""))
            text = repr(value)
            self.violations[violation] = count + 1, text if not count or len(text) < len(shortest) else shortest


def fuzz(area: Area, size: int) -> Outcomes:
    """Runs the area's share of `size` examples: the same ones every time in the short run, by SEED in the long one.

    All of them run, whatever goes wrong, so that one report shows every kind of violation.
    """
    outcomes = Outcomes(area.name)

    def example(value: Any) -> None:
        violation = watch(area, value, outcomes)
        if violation is not None and violation.startswith(TOO_LONG):
            # On a machine at work anything may take long, once.
            violation = watch(area, value, outcomes)
        outcomes.add(value, violation)

    options = settings(
        max_examples=max(1, round(size * area.share)),
        derandomize=size == SHORT,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    run = options(given(area.strategy)(example))
    if size != SHORT:
        run = hypothesis.seed(SEED)(run)
    started = time.monotonic()
    # Hypothesis draws constants from the loaded modules, which depend on the order of the tests.
    none = mock.patch.object(providers, "_get_local_constants", providers.Constants)
    with no_network(), none:
        providers.CONSTANTS_CACHE.cache.clear()
        run()
    outcomes.seconds = time.monotonic() - started
    return outcomes


def watch(area: Area, value: Any, outcomes: Outcomes) -> str | None:
    """Runs one example in a new folder. Returns what it violates."""
    root = Path(tempfile.mkdtemp(prefix="fuzz-"))
    here = Path.cwd()
    violation = None
    try:
        area.build(value, root)
        before = snapshot(root)
        os.chdir(root)
        printed = io.StringIO()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.monotonic()
        refused = False
        try:
            with limits(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                area.act(value, root)
        except area.refusals as error:
            refused = True
            violation = wrong_message(error)
        except (Exception, SystemExit, NetworkUsed) as error:
            violation = described(error)
        if time.monotonic() - started > MOST_SECONDS:
            violation = f"{TOO_LONG}: {violation or 'and ends'}"
        if (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 > MOST_BYTES:
            violation = violation or "takes more than 2 GiB"
        if "Traceback (most recent call last)" in printed.getvalue():
            violation = violation or f"prints a traceback: {printed.getvalue()[-300:]!r}"
        if violation is None:
            violation = changed(before, snapshot(root), () if refused else area.writes, refused)
        if refused and violation is None:
            outcomes.refused += 1
    finally:
        os.chdir(here)
        remove(root)
    return violation


def wrong_message(error: Exception) -> str | None:
    """Returns what is wrong with the text of an error. UserError itself keeps it to one line."""
    text = str(error)
    if isinstance(error, UserError) and (not text.strip() or "\n" in text or len(text) > MOST_CHARACTERS):
        return f"message is empty, of several lines or too long: {text[:200]!r}"
    return None


def described(error: BaseException) -> str:
    """The exception with the last place in the package, which tells one violation from another."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "modeling_mllmreid" in frame.filename]
    last = ours[-1] if ours else traceback.extract_tb(error.__traceback__)[-1]
    place = f"{last.filename.rpartition('modeling_mllmreid/')[2]}:{last.lineno}"
    # The values stand in the example; of an assertion the message tells the checks apart.
    message = re.sub(r"\d+|'[^']*'", "_", str(error).split("\n")[0])[:120]
    return f"{type(error).__name__} at {place}: {message!a}"


def snapshot(root: Path) -> dict[str, str]:
    """Returns the paths below a folder with the digest of each file and the target of each link."""
    found = {}
    for folder, folders, files in os.walk(os.fsencode(root)):
        for name in folders + files:
            path = os.path.join(folder, name)
            key = os.fsdecode(os.path.relpath(path, os.fsencode(root)))
            if os.path.islink(path):
                found[key] = f"link to {os.readlink(path)!r}"
            elif os.path.isfile(path):
                with open(path, "rb") as file:
                    found[key] = hashlib.file_digest(file, "sha1").hexdigest()
            else:
                found[key] = "no file"
    return found


def changed(before: dict[str, str], after: dict[str, str], allowed: tuple[str, ...], refused: bool) -> str | None:
    """Returns the first path that has changed."""
    what = "after a refusal" if refused else "unasked"
    for path in sorted(before.keys() | after.keys()):
        if path not in before and NEW in allowed:
            continue
        if before.get(path) != after.get(path) and not path.startswith(allowed or ("\0",)):
            kind = "left behind" if path not in before else "removed" if path not in after else "changed"
            return f"{kind} {what}: {path.rpartition('/')[2]!r}"
    return None


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """Within the block more than 2 GiB of new memory are a MemoryError, and more than 30 seconds a TimeoutError."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"more than {MOST_SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    # Threads reserve address space that they do not use.
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2 * MOST_BYTES, hard))
    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS + 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextlib.contextmanager
def no_network() -> Iterator[None]:
    """Within the block, a network address or connection raises an error that no code expects."""

    def refuse(*arguments: Any, **_: Any) -> None:
        raise NetworkUsed(f"asks for {arguments[:2]}")

    names = {"getaddrinfo": socket.getaddrinfo, "create_connection": socket.create_connection}
    connect = socket.socket.connect
    for name in names:
        setattr(socket, name, refuse)
    socket.socket.connect = refuse  # type: ignore[method-assign]
    online, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = online
        for name, function in names.items():
            setattr(socket, name, function)
        socket.socket.connect = connect  # type: ignore[method-assign]


class NetworkUsed(BaseException):
    """Not an Exception, so that no library handles it as an unreachable Hub."""


def remove(root: Path) -> None:
    """Removes a folder, including sub-folders without read permission."""
    for folder, _, _ in os.walk(os.fsencode(root)):
        os.chmod(folder, 0o700)
    shutil.rmtree(os.fsencode(root), ignore_errors=True)


def make_tests(*areas: Area) -> tuple[Callable[[Area], None], Callable[[Area], None]]:
    """The two tests of a module: few examples of every area, always the same, and many, as a slow test."""

    @pytest.mark.parametrize("area", areas, ids=lambda area: area.name)
    def test_few_examples(area: Area) -> None:
        check(fuzz(area, SHORT))

    @pytest.mark.slow
    @pytest.mark.parametrize("area", areas, ids=lambda area: area.name)
    def test_many_examples(area: Area) -> None:
        check(fuzz(area, LONG))

    return test_few_examples, test_many_examples


def check(outcomes: Outcomes) -> None:
    """Prints the counts; every violation fails the test."""
    print(outcomes)
    assert not outcomes.violations, f"\n{outcomes}"
