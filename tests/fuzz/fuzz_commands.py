"""The dataclasses that each command parses, and values that many fields accept."""

import importlib
from collections.abc import Sequence
from unittest import mock

from modeling_mllmreid.options import parser

COMMANDS = [
    "train",
    "evaluate",
    "calibrate",
    "data",
    "prepare",
    "caption",
    "continuations",
    "export",
    "push",
    "embed",
    "convert",
    "search",
    "demo",
]


class Captured(Exception):
    """Returns the dataclasses of a command from within its main."""


def groups_of(command: str) -> tuple[type, ...]:
    """The dataclasses that a command parses."""

    def capture(dataclasses: Sequence[type], _: str) -> None:
        raise Captured(tuple(dataclasses))

    module = importlib.import_module(f"modeling_mllmreid.commands.{command}")
    with mock.patch.object(parser, "_Parser", capture):
        try:
            module.main(["--x"])
        except Captured as captured:
            return captured.args[0]
    raise AssertionError(f"{command}: parses nothing")


GROUPS = {command: groups_of(command) for command in COMMANDS}
PLAIN = [
    "0",
    "1",
    "2",
    "7",
    "0.5",
    "1e-3",
    "true",
    "false",
    "no",
    "on",
    "null",
    "~",
    "a",
    "float32",
    "llm",
    "both",
    "stop",
]
