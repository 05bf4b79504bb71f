"""The options parser: YAML and command line together, and one line for each mistake."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from transformers import TrainingArguments

from modeling_mllmreid.commands.arguments import DataArguments, MethodArguments, ModelArguments
from modeling_mllmreid.commands.options import parse
from modeling_mllmreid.errors import UserError
from modeling_mllmreid.model import MllmReIDConfig
from modeling_mllmreid.training import BatchArguments, ReIDTrainingArguments


@dataclass
class Sizes:
    """Stand-in for a command's own options."""

    people: int = field(metadata={"help": "How many."})
    rates: list[float] = field(default_factory=list, metadata={"help": "One each."})
    colour: Literal["red", "blue"] = field(default="red", metadata={"help": "Which."})
    name: str | None = field(default="none", metadata={"help": "Its name."})
    fast: bool = field(default=True, metadata={"help": "Whether."})

    def __post_init__(self):
        if self.people < 0:
            raise ValueError(f"people {self.people}:\n give 0 or more")


def write(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_command_line_wins_over_yaml_and_yaml_over_defaults(tmp_path):
    path = write(tmp_path, "model: ours\nloss_lambda: 5e-1\npeople: 3\nrates: [1, 2.5]\nname: null\nfast: false\n")
    model, method, sizes = parse((ModelArguments, MethodArguments, Sizes), [path, "--people", "4"], "x")
    assert (model.model, model.dtype) == ("ours", "float32")
    assert method.given() == {"loss_lambda": 0.5}
    assert (sizes.people, sizes.rates, sizes.name, sizes.fast, sizes.colour) == (4, [1.0, 2.5], None, False, "red")


def test_yaml_takes_everything_that_training_arguments_take(tmp_path):
    text = f"output_dir: {tmp_path}\nlearning_rate: 2e-3\nlr_scheduler_kwargs:\n  num_cycles: 2\nlogging_steps: 7\n"
    (arguments,) = parse((TrainingArguments,), [write(tmp_path, text), "--logging_steps=8", "--use_cpu"], "train")
    assert (arguments.learning_rate, arguments.lr_scheduler_kwargs) == (2e-3, {"num_cycles": 2})
    assert (arguments.logging_steps, arguments.use_cpu) == (8, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("peeple: 3", "unknown field 'peeple': did you mean 'people'?"),
        ("people: three", "people: invalid int value: 'three'"),
        ("people: 1.5", "people: invalid int value: '1.5'"),
        ("people: [1, 2]", "people: takes one value, not a list"),
        ("people:", "people: has no value"),
        ("people: 1\ncolour: green", "colour: invalid choice: 'green'"),
        ("people: 1\nname: no", "name: YAML reads this word as yes or no"),
        ("people: 1\nfast: perhaps", "fast: .*perhaps"),
        ("- people", "not a list of `field: value` lines"),
        ("people: [1", "not a YAML file"),
    ],
)
def test_mistake_in_yaml_is_one_line_that_names_file_and_key(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        parse((Sizes,), [path], "x")
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--peeple", "3"], "x: unknown field '--peeple': did you mean '--people'?"),
        (["--peop", "3"], "unknown field '--peop': did you mean '--people'?"),
        (["--people", "three"], "x: people: invalid int value: 'three'"),
        (["--people"], "people: expected one argument"),
        (["--people", "3", "4"], "x: '4' stands alone"),
        (["--people", "-3"], "x: people -3: give 0 or more"),
        ([], "x: people is not given"),
        (["absent.yaml"], "absent.yaml: cannot be read"),
    ],
)
def test_mistake_on_the_command_line_is_one_line(argv, message):
    with pytest.raises(UserError) as error:
        parse((Sizes,), argv, "x")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_help_lists_every_field_with_its_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse((ModelArguments, MethodArguments, DataArguments), ["--help"], "evaluate")
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith("usage: run_reid.py evaluate [config.yaml]")
    assert "--loss_lambda" in text and "--strict" in text and "(default: float32)" in text


def test_method_fields_are_fields_of_the_model_configuration():
    known = MllmReIDConfig.__dataclass_fields__
    assert [name for name in MethodArguments.__dataclass_fields__ if name not in known] == []


def test_the_recipe_of_configs_parses_and_its_model_configuration_is_valid():
    groups = (ModelArguments, MethodArguments, DataArguments, BatchArguments, ReIDTrainingArguments)
    recipe = Path(__file__).parents[2] / "configs/llava_1_5_7b_market1501.yaml"
    model, method, data, batch, training = parse(groups, [str(recipe), "--data_dir", "market", "--use_cpu"], "train")
    assert (model.model, data.data_dir, batch.texts) == ("llava-hf/llava-1.5-7b-hf", "market", "texts.jsonl")
    assert training.per_device_train_batch_size == 64 and training.learning_rates["vision_tower"] == 5e-6
    config = MllmReIDConfig(**method.given())
    assert (config.num_image_tokens, config.loss_lambda) == (162, 0.7)
