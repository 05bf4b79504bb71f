"""`COMMAND --help`: grouped by concern, one screen of what matters first, the rest behind `--help_all`."""

import importlib
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
from transformers import HfArgumentParser

from modeling_mllmreid.commands import ablate
from modeling_mllmreid.commands.main import COMMANDS
from modeling_mllmreid.options.help_text import REQUIRED, SHOWN_FIRST
from modeling_mllmreid.options.parser import UNUSED, parse
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.utils.ranges import Count, NotNegative, Share


@dataclass
class SizeArguments:
    """How much there is of it. A second sentence."""

    people: Count = field(metadata={"help": "How many (counted over all cameras and over all days of the whole year)."})
    share: Share = field(default=0.5, metadata={"help": "Above 95 % of it. And more."})
    weight: NotNegative | None = field(default=None, metadata={"help": "Its weight."})
    colour: Literal["red", "blue"] = field(default="red", metadata={"help": "Which."})
    names: list[str] = field(default_factory=lambda: ["a", "b"], metadata={"help": "One each."})
    fast: bool = field(default=True, metadata={"help": "Whether."})


FIRST = """\
usage: mllmreid x [recipe or config.yaml] [--field value ...]
How much there is of it:
  --people 1<=N<=10,000,000           Required. How many
  --share 0<=X<=1                     Above 95 % of it [default: 0.5]
  --weight X>=0                       Its weight
  --colour red|blue                   Which [default: red]
  --names TEXT ...                    One each [default: a b]
  --fast true|false                   Whether [default: true]
"""


@pytest.fixture
def printed(monkeypatch, capsys):
    """Returns the output of a function that exits, on a terminal of the given width."""

    def printed(function, columns=120):
        monkeypatch.setattr(sys, "argv", ["/usr/bin/mllmreid"])
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as end:
            function()
        assert end.value.code == 0
        return capsys.readouterr().out

    return printed


def help_of(command: str, flag: str = "--help"):
    return lambda: importlib.import_module(f"modeling_mllmreid.commands.{command}").main([flag])


def test_a_group_has_a_heading_and_each_field_shows_its_values_default_and_range(printed):
    assert printed(lambda: parse((SizeArguments,), ["--help"], "x")) == FIRST
    everything = printed(lambda: parse((SizeArguments,), ["--help_all"], "x"))
    assert "Required. How many (counted over" in everything and "of it. And more. [default: 0.5]" in everything


def test_the_values_of_a_recipe_are_the_defaults(printed):
    assert "[default: 0.003]" in printed(help_of("demo"))
    text = printed(lambda: ablate.main(["ablation_demo", "--help"]))
    assert "[default: runs/ablation_demo]" in " ".join(text.split()) and "Required." not in text


def test_a_narrow_terminal_wraps(printed):
    text = printed(lambda: parse((SizeArguments,), ["--help_all"], "x"), columns=60)
    assert max(map(len, text.splitlines()[1:])) <= 60


def test_train_help_is_one_screen_and_help_all_adds_the_stock_arguments(printed):
    first = printed(help_of("train"))
    assert len(first.splitlines()) <= 42
    for text in ("--model TEXT", "--dataset TEXT", "--output_dir TEXT"):
        assert f"  {text:<36}Required. " in first
    assert "--learning_rate X>=0" in first and "[default: checkpoint's, or 0.7]" in " ".join(first.split())
    assert "--adam_beta1" not in first and first.endswith("more fields: mllmreid train --help_all\n")
    everything = printed(help_of("train", "--help_all"))
    stock = everything.partition("Further arguments of transformers' TrainingArguments:")[2]
    assert "--adam_beta1 0<=X<1" in stock and "--identities_per_batch" not in stock.partition("\nA dry run:")[0]
    # The help omits arguments that are refused.
    assert "--torch_compile" in everything and "--liger_kernel_config" not in everything
    assert "--per_device_train_batch_size" not in everything


@pytest.mark.parametrize("command", ["embed", "evaluate", "search", "data", "export", "push"])
def test_the_other_commands_fit_one_screen(printed, command):
    assert len(printed(help_of(command)).splitlines()) <= 42


def test_every_name_of_the_tables_is_a_field(printed):
    for command, names in {**UNUSED, **REQUIRED}.items():
        module = importlib.import_module(f"modeling_mllmreid.commands.{command}")
        kinds = [value for value in vars(module).values() if hasattr(value, "__dataclass_fields__")]
        kinds += list(vars(module).get("GROUPS", ()))
        assert set(names) <= {name for kind in kinds for name in kind.__dataclass_fields__}, command
    modules = [importlib.import_module(f"modeling_mllmreid.commands.{command}") for command in COMMANDS]
    for name, shown in SHOWN_FIRST.items():
        kind = next(vars(module)[name] for module in modules if name in vars(module))
        assert set(shown) <= kind.__dataclass_fields__.keys(), name


def test_the_parser_of_transformers_accepts_our_arguments(tmp_path):
    (args,) = HfArgumentParser(ReIDTrainingArguments).parse_args_into_dataclasses(
        ["--output_dir", str(tmp_path), "--use_cpu", "true"]
    )
    assert args.identities_per_batch == 16


def test_convert_takes_a_file_and_an_encoder_has_a_pooling(printed):
    assert printed(help_of("convert")).startswith("usage: mllmreid convert [FILE or config.yaml] [--field value ...]\n")
    text = " ".join(printed(help_of("train")).split())
    assert "--model TEXT Required. Checkpoint, multimodal LLM or vision encoder" in text
    assert "--pooling TEXT" in text and "class, mean, gem, class_mean" in text
