"""The flags of dataclass fields: those of transformers' parser, field by field."""

from argparse import ArgumentParser
from dataclasses import dataclass, field
from typing import Literal

import pytest
from transformers import HfArgumentParser

from modeling_mllmreid.options.arguments import MethodArguments, ModelArguments, OnnxArguments
from modeling_mllmreid.options.data_arguments import DataArguments
from modeling_mllmreid.options.flags import add_flags
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments


@dataclass
class Kinds:
    """A field of each kind."""

    people: int
    share: float | None = field(default=None, metadata={"help": "A share.", "metavar": "X"})
    names: list[str] = field(default_factory=list)
    rates: list[float] | None = None
    by_name: dict[str, str] | None = None
    colour: Literal["red", "blue"] | None = None
    count: Literal[1, 2] = 1
    fast: bool = False
    safe_mode: bool = True
    maybe: bool | None = None
    limit: int | str | None = None
    kept: str = field(default="", init=False)


@pytest.mark.parametrize(
    "kind",
    [
        Kinds,
        ModelArguments,
        MethodArguments,
        OnnxArguments,
        DataArguments,
        BatchArguments,
        ReIDTrainingArguments,
    ],
)
def test_the_flags_are_those_of_transformers(kind):
    parser = ArgumentParser()
    add_flags(parser, kind)
    theirs = HfArgumentParser([kind])._actions
    assert [action.option_strings for action in parser._actions] == [action.option_strings for action in theirs]
    for own, their in zip(parser._actions, theirs, strict=True):
        for name in ("dest", "nargs", "const", "help", "metavar"):
            assert getattr(own, name) == getattr(their, name), own.dest
        # A list with a default that is no list has none there.
        assert own.default == their.default or (their.default is None and own.nargs == "+"), own.dest
        assert list(own.choices or ()) == list(their.choices or ())
        if own.choices:
            assert [own.type(str(choice)) for choice in own.choices] == list(own.choices)
        else:
            assert getattr(own.type, "__name__", own.type) == getattr(their.type, "__name__", their.type), own.dest


def test_a_union_without_text_is_a_fault_of_the_dataclass():
    @dataclass
    class Several:
        number: int | float = 1

    with pytest.raises(ValueError, match="a flag has one type: give X or X | None"):
        add_flags(ArgumentParser(), Several)
