"""The rules of the fuzz tests: violations are found; an error in one line and a success are not violations."""

import contextlib
import os
import socket
from pathlib import Path
from typing import Any
from unittest import mock

import fuzz_harness
import numpy as np
import pytest
from fuzz_harness import NEW, Area, Outcomes, fuzz, no_network, watch
from hypothesis import strategies as st

from modeling_mllmreid.utils.errors import UserError


def succeed(value: Any, root: Path) -> None:
    assert (root / "in").read_text() == "input"


def refuse(value: Any, root: Path) -> None:
    raise UserError("two\nlines become one")


def refuse_and_leave(value: Any, root: Path) -> None:
    (root / ".part").write_text("")
    raise UserError("no")


def change_the_input(value: Any, root: Path) -> None:
    (root / "in").write_text("output")


def write(value: Any, root: Path) -> None:
    (root / "new").write_text("output")


def ask_the_network(value: Any, root: Path) -> None:
    with contextlib.suppress(Exception):
        socket.create_connection(("example.org", 80))


def fill_the_memory(value: Any, root: Path) -> None:
    np.ones(2**33, dtype=np.uint8)


def wait(value: Any, root: Path) -> None:
    os.mkfifo(root / "new")
    (root / "new").read_text()


def fail(value: Any, root: Path) -> None:
    raise KeyError("a")


def say_nothing(value: Any, root: Path) -> None:
    raise UserError("")


def exit_early(value: Any, root: Path) -> None:
    raise SystemExit(2)


@pytest.mark.parametrize(
    ("act", "violation"),
    [
        (succeed, None),
        (refuse, None),
        (refuse_and_leave, "left behind after a refusal: '.part'"),
        (change_the_input, "changed unasked: 'in'"),
        (write, "left behind unasked: 'new'"),
        (ask_the_network, "NetworkUsed"),
        (fill_the_memory, "MemoryError"),
        (wait, "takes more than"),
        (fail, "KeyError"),
        (say_nothing, "message is empty"),
        (exit_early, "SystemExit"),
    ],
)
def test_violations_are_found(act, violation):
    area = Area("a", 1, st.none(), lambda value, root: (root / "in").write_text("input") and None, act)
    most = -0.8 if act is wait else fuzz_harness.MOST_SECONDS
    with no_network(), mock.patch.object(fuzz_harness, "MOST_SECONDS", most):
        found = watch(area, None, Outcomes("a"))
    assert (found is None) if violation is None else found.startswith(violation) or violation in found


def test_the_output_of_an_area_is_no_violation_and_counts_add_up():
    def act(value: int, root: Path) -> None:
        if value < 3:
            raise UserError("too few")
        write(value, root)

    area = Area("a", 0.02, st.integers(0, 9), lambda value, root: None, act, writes=(NEW,))
    outcomes = fuzz(area, 500)
    assert (outcomes.examples, outcomes.broken) == (10, 0) and 0 < outcomes.refused < 10
