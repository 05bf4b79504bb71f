"""Parses the command lines of a page without running them."""

import importlib
import json
from pathlib import Path

import pytest
from documents import ROOT, command_lines

from modeling_mllmreid.commands.main import COMMANDS
from modeling_mllmreid.data.combinations import parse_combination
from modeling_mllmreid.data.load import READERS
from modeling_mllmreid.options.parser import build_options, read_options

PROGRAMS = ("run_reid.py", "mllmreid", "modeling_mllmreid")


class Parsed(Exception):
    """Raised after a command has read its options; holds their dataclasses."""


def parse_only(command: str, argv: list[str], monkeypatch: pytest.MonkeyPatch, *, build: bool = True) -> list[type]:
    """Reads and builds a command's options, as its `main` does first, and stops. Returns their dataclasses."""

    def stop(dataclasses, argv, command):
        if build:
            build_options(dataclasses, read_options(dataclasses, argv, command), command)
        raise Parsed(dataclasses)

    module = importlib.import_module(f"modeling_mllmreid.commands.{command}")
    for name in ("parse", "read_options"):
        monkeypatch.setattr(module, name, stop, raising=False)
    with pytest.raises(Parsed) as parsed:
        module.main(argv)
    return parsed.value.args[0]


def check_folders(words: list[str]) -> None:
    """Asserts that a command line which names readers says where their folders are. A recipe may name the reader."""
    if "--dataset" not in words:
        return
    name = words[words.index("--dataset") + 1]
    combination = parse_combination(name)
    if combination is None:
        assert name not in READERS or "--data_dir" in words or "--columns" in words, words
    else:
        assert "--data_dirs" in words, words
        folders = json.loads(words[words.index("--data_dirs") + 1])
        assert folders.keys() >= {*combination.sources}, words


def parse_command_lines(page: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Parses every command of this package on a page, from the folder of the checkout. Returns their number."""
    monkeypatch.chdir(ROOT)
    parsed = 0
    for words in command_lines(page):
        start = next((i for i, word in enumerate(words) if word in PROGRAMS), len(words)) + 1
        command, argv = words[start : start + 1], words[start + 1 :]
        if "--config_file" in words:
            assert Path(words[words.index("--config_file") + 1]).is_file(), words
        if command in ([], ["COMMAND"], ["--help"]):
            continue
        assert command[0] in COMMANDS, words
        if command in (["train"], ["ablate"]):
            # A GPU is not needed to read a recipe for one.
            argv = [word.replace("RECIPE.yaml", "llava_1_5_7b_qlora_16gb") for word in argv] + ["--use_cpu", "true"]
        if not {"--help", "--help_all"} & set(argv) and command != ["configs"]:
            check_folders(argv)
            parse_only(command[0], argv, monkeypatch)
            parsed += 1
    return parsed
