"""The options parser: YAML and command line together, and an error in one line for each mistake."""

import importlib
import os
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Literal

import pytest
from transformers import TrainingArguments

from modeling_mllmreid.model import MllmReIDConfig, MllmReIDVisionConfig
from modeling_mllmreid.options import parser
from modeling_mllmreid.options.arguments import MethodArguments, ModelArguments
from modeling_mllmreid.options.data_arguments import DataArguments
from modeling_mllmreid.options.overrides import OVERRIDES
from modeling_mllmreid.options.parser import build_options, parse, read_options
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.utils.errors import UserError
from modeling_mllmreid.utils.ranges import Count, Seed, Share


@dataclass
class Ranges:
    """Options with a range in the type of each field."""

    share: Share = field(default=0.5, metadata={"help": "Above 95 % of what there is."})
    seed: Seed | None = field(default=None, metadata={"help": "Of the draws."})
    weight: float = field(default=1.0, metadata={"help": "Without a range."})
    counts: list[Count] = field(default_factory=list, metadata={"help": "One each."})
    rows: dict[str, dict] = field(default_factory=dict, metadata={"help": "Name -> fields."})
    folders: dict[str, str] | None = field(default=None, metadata={"help": "Name -> folder."})


@dataclass
class Sizes:
    """Options of a command."""

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


def test_yaml_accepts_every_training_argument(tmp_path):
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
        ([], "x: people is not given: add it; --help says what it takes"),
        (["absent.yaml"], "x: absent.yaml: no such file and no such recipe"),
    ],
)
def test_mistake_on_the_command_line_is_one_line(argv, message):
    with pytest.raises(UserError) as error:
        parse((Sizes,), argv, "x")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_all_missing_values_are_named_at_once():
    with pytest.raises(UserError, match="train: model, dataset and people are not given: add them; --help says what"):
        build_options((ModelArguments, DataArguments, Sizes), {}, "train")


def test_method_fields_are_fields_of_the_model_configuration():
    known = {*MllmReIDConfig.__dataclass_fields__, *MllmReIDVisionConfig.__dataclass_fields__}
    assert [name for name in MethodArguments.__dataclass_fields__ if name not in known] == []


def test_the_recipe_of_configs_parses_and_its_model_configuration_is_valid():
    groups = (ModelArguments, MethodArguments, DataArguments, BatchArguments, ReIDTrainingArguments)
    recipe = Path(__file__).parents[2] / "configs/llava_1_5_7b_market1501.yaml"
    model, method, data, batch, training = parse(groups, [str(recipe), "--data_dir", "market", "--use_cpu"], "train")
    assert (model.model, data.data_dir, batch.texts) == ("llava-hf/llava-1.5-7b-hf", "market", "texts.jsonl")
    assert training.per_device_train_batch_size == 64 and training.learning_rates["vision_tower"] == 5e-6
    config = MllmReIDConfig(**method.given())
    assert (config.num_image_tokens, config.loss_lambda) == (162, 0.7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: 2024-01-01", "line 1: YAML reads '2024-01-01' as a date: put it in quotes"),
        ("people: 010", "people: invalid int value: '010'"),
        ("people: 0x1F", "people: invalid int value"),
        ("people: 1:30", "people: invalid int value: '1:30'"),
        ("people: 1_000", "people: invalid int value"),
        ("people: 1e3", "people: invalid int value: '1e3'"),
        ("people: 8.0", "people: invalid int value: '8.0'"),
        ("people: ٣", "people: invalid int value"),
        ("people: 99999999999999999999", "people: 99999999999999999999: is out of range"),
        ("people: {a: 1}", "people: takes one value, not a mapping"),
        ("people: 1\npeople: 2", "line 2: people: is there twice"),
        ("people: !!python/object/apply:os.system [echo]", "people: takes one value|the tag .*python.* is not taken"),
        ("people: !!binary MQ==", "the tag !!binary is not taken"),
        ("people: !!int x", "people: invalid int value: 'x'"),
        ("fast: !!bool perhaps", "'perhaps' is not what its tag says"),
        ("rates: [.nan]", "rates: invalid float value: '.nan'"),
        ("rates: [1e999]", "rates: 1e999: is out of range: give a finite number"),
        ("rates: [[1]]", "rates: takes one value, not a list"),
        ("rates: [~]", "rates: holds an empty entry"),
        ("name: ''", "name: '' is empty or no text"),
        ('name: "a\\0b"', "name: .* is empty or no text"),
        ('name: "\\ud800"', "name: .* is empty or no text"),
        ("1: 2", "the key '1' is no text: put it in quotes"),
        ("yes: 2", "YAML reads the key 'yes' as yes or no"),
        ("2024-01-01: 2", "the key '2024-01-01' is no text"),
        ("? [a, b]\n: 2", "a key is no text"),
        ("people: 1\n---\npeople: 2", "not a YAML file .*single document"),
        ("people:\t1\n\tname: x", "not a YAML file"),
        ("people: 1\0", "not a YAML file"),
        ("people: &a [*a]", "within what it is an alias of"),
        ("people: " + "[" * 5000, "nested too deeply"),
        ("people: " + "[" * 50 + "]" * 50, "20 levels"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{b}: &{b} [{','.join(['*' + a] * 10)}]\n" for a, b in ("ab", "bc", "cd", "de", "ef", "fg")),
            "10,000 values",
        ),
        ("people: '" + "x" * 300_000, "larger than 256 KiB"),
        ("colour: gren", "colour: invalid choice: 'gren': .* did you mean 'red'"),
        ("rows: {a: {lambda: .nan}}", "YAML reads '.nan' as another number"),
        ("rows: {a: {steps: 010}}", "YAML reads '010' as another number"),
        ("rows: {a: {1: 2}}", "the key '1' is no text"),
        ("rows: {a: 1}", "rows: 'a' has the value 1, not a mapping"),
        ("folders: {a: 5}", "folders: 'a' has the value 5, not text"),
        ("counts: [1, 0]", "counts: 0: is out of range: give a number at least 1"),
    ],
)
def test_hostile_yaml_is_one_line_that_names_the_file(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        parse((Sizes, Ranges), [path], "x")
    assert str(error.value).startswith(path) and "\n" not in str(error.value) and len(str(error.value)) <= 1000


@pytest.mark.parametrize("content", [b"\xff\xfep\x00:\x00 \x001\x00", b"people: \xe9", b"people: 1\x1b[2J"])
def test_a_file_with_control_codes_or_without_utf8_is_refused(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a YAML file") as error:
        parse((Sizes,), [str(path)], "x")
    assert str(error.value).isprintable()


def test_a_folder_a_device_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path), "/dev/zero", str(tmp_path / "pipe"), ""):
        with pytest.raises(UserError, match="is no regular file"):
            parse((Sizes,), [path], "x")


def test_a_value_means_the_same_in_yaml_and_on_the_command_line(tmp_path):
    text = "\ufeffpeople: 3\nname: 0012345\nrates: [1e-4, 1.50]\nfast: off\n"
    (from_file,) = parse((Sizes,), [write(tmp_path, text)], "x")
    flags = ["--people=3", "--name", "0012345", "--rates", "1e-4", "1.50", "--fast", "false"]
    assert from_file == parse((Sizes,), flags, "x")[0]
    assert (from_file.name, from_file.rates, from_file.fast) == ("0012345", [1e-4, 1.5], False)
    (from_file,) = parse((Sizes,), [write(tmp_path, 'people: 1\nname: "\\ud83d\\ude00"')], "x")
    assert from_file.name == "\U0001f600"


def test_anchors_merge_keys_and_nested_numbers(tmp_path):
    text = "rows:\n  a: &a {lambda: 1e-3, text: no, n: 2}\n  b:\n    <<: *a\n    n: 3\ncounts: []\n"
    (ranges,) = parse((Ranges,), [write(tmp_path, text)], "x")
    assert ranges.rows == {"a": {"lambda": 1e-3, "text": False, "n": 2}, "b": {"lambda": 1e-3, "text": False, "n": 3}}
    assert ranges.counts == []


def test_brackets_after_a_list_flag_empty_the_list_of_the_file(tmp_path):
    path = write(tmp_path, "people: 1\nrates: [1, 2]\n")
    assert parse((Sizes,), [path, "--rates", "[]"], "x")[0].rates == []
    assert parse((Sizes,), [path, "--rates=[]", "--rates", "3"], "x")[0].rates == [3]
    with pytest.raises(UserError, match="people: invalid"):
        parse((Sizes,), [path, "--people", "[]"], "x")
    with pytest.raises(UserError, match="rates: invalid"):
        parse((Sizes,), [path, "--rates", "1", "[]"], "x")


def test_repeated_list_flags_add_up_and_a_repeated_value_warns(caplog):
    (sizes,) = parse((Sizes,), ["--people", "1", "--rates", "1", "-2", "--rates=3", "--people=1", "--name=--x"], "x")
    assert (sizes.rates, sizes.name, caplog.text) == ([1, -2, 3], "--x", "")
    for flags in (["--name", "a", "--name", "b"], ["--fast", "true", "--fast", "false"]):
        assert parse((Sizes,), ["--people=1", *flags], "x") == parse((Sizes,), ["--people=1", *flags[-2:]], "x")
        assert "the last counts" in caplog.text
        caplog.clear()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seed", "-1"], "x: seed: -1: is out of range: give a number at least 0 and at most 4,294,967,295"),
        (["--share", "1.01"], "share: 1.01: is out of range"),
        (["--share", "nan"], "share: invalid float value: 'nan'"),
        (["--weight", "nan"], "x: weight: nan: is out of range: give a finite number"),
        (["--weight", "-inf"], "x: weight: -inf: is out of range: give a finite number"),
        (["--counts", "1", "0"], "counts: 0: is out of range: give a number at least 1"),
        (["--counts", "--share", "1"], "counts: expected one argument"),
        (["--rows", "[1]"], "rows: '[1]' is not a JSON object"),
        (["--rows", '{"a": NaN}'], "NaN is no finite number"),
        (["--rows", '{"a": {}, "a": {}}'], "the key 'a' is there twice"),
        (["--rows", '{"a":' * 100_000], "nested too deeply"),
        (["--folders", '{"a": "\\u0000"}'], "holds a NUL"),
        (["--folders", "{}", "x"], "'x' stands alone"),
        (["--", "--seed", "1"], "'--' stands alone"),
        (["--" + "é" * 100_000], "unknown field"),
        (["--fields", "1"], "did you mean '--"),
    ],
)
def test_a_value_out_of_range_or_of_a_wrong_type_is_refused(argv, message):
    with pytest.raises(UserError) as error:
        parse((Ranges,), argv, "x")
    assert message in str(error.value) and len(str(error.value)) <= 1000


def test_an_error_of_transformers_is_a_mistake_of_the_user_and_an_error_of_ours_is_not():
    for flags in (["--lr_scheduler_type", "sideways"], ["--warmup_steps=-1"], ["--accelerator_config", '{"x": 1}']):
        with pytest.raises(UserError, match="train: "):
            parse((TrainingArguments,), ["--output_dir", "x", "--use_cpu", *flags], "train")

    code = compile("def fault(self): return None.missing", f"{Path(parser.__file__).parent}/ours.py", "exec")
    names: dict = {}
    exec(code, names)

    @dataclass
    class Faulty:
        __post_init__ = names["fault"]

    with pytest.raises(AttributeError):
        parse((Faulty,), [], "x")


def test_an_old_name_is_accepted_with_a_warning_in_yaml_and_as_a_flag(tmp_path, caplog, monkeypatch):
    monkeypatch.setitem(parser.RENAMED, "old_people", "people")
    monkeypatch.setitem(parser.RENAMED, "slow_fast", "fast")
    path = write(tmp_path, "old_people: 3\n")
    assert parse((Sizes,), [path], "x")[0].people == 3
    assert f"{path}: old_people is now called people: the next release does not know the old name" in caplog.text
    for flags in (["--old_people", "3"], ["--old-people=3"]):
        caplog.clear()
        assert parse((Sizes,), flags, "x")[0].people == 3
        assert "x: old_people is now called people" in caplog.text
    assert parse((Sizes,), ["--people=3", "--no_slow_fast"], "x")[0].fast is False
    with pytest.raises(UserError, match="people: is there under its old name too: keep one of them"):
        parse((Sizes,), [write(tmp_path, "old_people: 3\npeople: 4\n")], "x")
    # The old name is unknown in a command without the field.
    with pytest.raises(UserError, match="unknown field '--old_people'"):
        parse((ModelArguments,), ["--old_people", "3"], "x")


def test_every_new_name_is_a_field_and_no_old_name_is():
    known = {name for kind in every_dataclass() for name in kind.__dataclass_fields__}
    assert set(parser.RENAMED.values()) <= known and not set(parser.RENAMED) & known


def test_a_field_without_effect_is_ignored_with_a_warning_and_absent_from_the_help(tmp_path, caplog, capsys):
    path = write(tmp_path, "model: ours\nloss_lambda: 0.5\n")
    model, method = parse((ModelArguments, MethodArguments), [path, "--id_weight", "3", "--width=64"], "embed")
    assert (model.model, method.given()) == ("ours", {"width": 64})
    for where, name in ((path, "loss_lambda"), ("embed", "id_weight")):
        assert f"{where}: {name} has no effect here: leave it out, the next release refuses it" in caplog.text
    for flag in ("--help", "--help_all"):
        with pytest.raises(SystemExit):
            parse((ModelArguments, MethodArguments), [flag], "embed")
        printed = capsys.readouterr().out
        assert "--width" in printed and not any(f"--{name} " in printed for name in parser.UNUSED["embed"])
    assert parse((ModelArguments, MethodArguments), [path], "train")[1].given() == {"loss_lambda": 0.5}


def every_dataclass() -> set[type]:
    """The dataclasses of every command."""
    from modeling_mllmreid.commands.main import COMMANDS

    # The settings of the variants of `ablate` have dataclasses of their own.
    names = [*(f"commands.{name}" for name in COMMANDS), "research.ablation.settings"]
    modules = [importlib.import_module(f"modeling_mllmreid.{name}") for name in names]
    found = {value for module in modules for value in vars(module).values() if is_dataclass(value)}
    return {kind for kind in found if isinstance(kind, type) and kind.__name__.endswith(("Arguments", "Model"))}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--max_steps 9 --num_train_epochs 3", "num_train_epochs: has no effect with max_steps 9: set max_steps to -1"),
        ("--eval_steps 5", "eval_steps: has no effect with eval_strategy epoch: set eval_strategy to steps"),
        ("--save_steps 5 --save_strategy best", "save_steps: has no effect with save_strategy best"),
        ("--eval_strategy no --metric_for_best_model mAP", "metric_for_best_model: has no effect with eval_strategy"),
        ("--warmup_steps 5 --lr_scheduler_type constant", "warmup_steps: has no effect with lr_scheduler_type const"),
        ("--hub_model_id a/b", "has no effect with push_to_hub false: set push_to_hub to true, or leave hub_model_id"),
    ],
)
def test_a_flag_that_another_field_overrides_is_refused(flags, message):
    with pytest.raises(UserError, match=f"^train: .*{message}"):
        read_options((ReIDTrainingArguments,), flags.split(), "train")


def test_a_line_of_a_recipe_may_be_overridden_and_the_help_hides_it(tmp_path, capsys):
    path = write(tmp_path, "num_train_epochs: 20\neval_strategy: 'no'\neval_steps: 5\n")
    assert read_options((ReIDTrainingArguments,), [path, "--max_steps", "2"], "train")["max_steps"] == 2
    with pytest.raises(SystemExit):
        read_options((ReIDTrainingArguments,), [write(tmp_path, "max_steps: 20\n"), "--help"], "train")
    printed = " ".join(capsys.readouterr().out.split())
    assert "--max_steps N " in printed and "default: 20]" in printed and "--num_train_epochs" not in printed
    known = ReIDTrainingArguments.__dataclass_fields__.keys()
    assert OVERRIDES.keys() <= known and {override.name for override in OVERRIDES.values()} <= known


@pytest.mark.parametrize("command", ["embed", "evaluate"])
def test_fields_that_choose_the_heads_have_an_effect_without_training(command):
    flags = ["--bnneck", "false", "--reid_on", "llm", "--loss_lambda", "0.5"]
    assert read_options((MethodArguments,), flags, command) == {"bnneck": False, "reid_on": "llm"}
