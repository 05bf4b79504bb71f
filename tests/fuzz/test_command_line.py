"""Fuzz: options. A YAML value or a flag gives a value of the type of its field, or an error in one line."""

import dataclasses
import json
import math
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fuzz_commands import COMMANDS, GROUPS, PLAIN
from fuzz_harness import Area, make_tests
from hostile import byte_changes, changed_bytes, json_values, texts
from hypothesis import strategies as st

from modeling_mllmreid.options import parser
from modeling_mllmreid.options.overrides import OVERRIDES
from modeling_mllmreid.utils.errors import UserError
from modeling_mllmreid.utils.ranges import Range

FIELDS = {
    command: [field for group in groups for field in dataclasses.fields(group) if field.init]
    for command, groups in GROUPS.items()
}
NAMES = {command: [field.name for field in of] for command, of in FIELDS.items()}
YAML = [
    *(
        "2024-01-01",
        "2024-01-01T00:00:00Z",
        "010",
        "0x1F",
        "0b1",
        "1:30",
        "1_000",
        ".inf",
        ".nan",
        "-.inf",
        "+5",
        "8.0",
    ),
    *(
        "!!python/object/apply:os.system ['echo']",
        "!!binary aGk=",
        "!!set {a, b}",
        "!!int '5'",
        "!!float x",
        "!!null x",
    ),
    *(
        "&a 5",
        "*a",
        "&a [*a]",
        "<<",
        "=",
        "{<<: *b}",
        "[1, 2]",
        "[a, [b]]",
        "{a: b}",
        "{a: {b: [1, null]}}",
        "[]",
        "{}",
    ),
    *(
        "|\n  text\n  more",
        ">-\n  text",
        "'quoted'",
        '"\\ud800"',
        '"\\0"',
        "@x",
        "`x`",
        "%x",
        "? x",
        "- x",
        "a: b",
        "#",
    ),
    *('{"a": NaN}', '{"a": 1, "a": 2}', "{1: 2}", "{yes: no}", "{2024-01-01: 1}", "{? [a] : b}", "9" * 25, "9" * 5000),
    *("[" * 500, "1e999", "٣", "1" * 400 + ".5", "nan", "inf"),
]
values = st.one_of(st.sampled_from(PLAIN), st.sampled_from(YAML), texts, json_values.map(lambda v: json.dumps(v)))


def names(command: str) -> st.SearchStrategy[str]:
    """Mostly the command's own fields, and others."""
    own = st.sampled_from(NAMES[command])
    return st.one_of(
        *[own] * 8, texts, st.sampled_from(["<<", "1", "yes", "null", "2024-01-01", "? [a]", "help", "no_plots"])
    )


def meant(command: str) -> st.SearchStrategy[tuple[str, str]]:
    """A field of the command with a value that it takes."""
    hints = [item for group in GROUPS[command] for item in get_type_hints(group).items() if item[0] in NAMES[command]]
    return st.sampled_from([(name, value) for name, hint in hints for value in GOOD.get(hint, GOOD[str])])


GOOD = {
    bool: ["true", "off"],
    int: ["1", "2"],
    float: ["0.5", "1e-3"],
    str: ["a", "0012", "x y", "'true'", '"\\u00e9"'],
    list[str]: ["[a, b]", "a", "[]"],
    dict[str, str]: ["{a: b}", "{}"],
    int | None: ["3", "null"],
    bool | None: ["yes", "~"],
}
commands = st.sampled_from([*COMMANDS[1:] * 3, "train", "demo"])
files = commands.flatmap(
    lambda command: st.fixed_dictionaries(
        {
            "command": st.just(command),
            "lines": st.lists(st.one_of(*[meant(command)] * 5, st.tuples(names(command), values)), max_size=5),
            "start": st.sampled_from(
                [*[""] * 14, "\ufeff", "---\n", "%YAML 1.2\n---\n", "b: &b {x: 1}\n", "- ", "\t", "'"]
            ),
            "end": st.sampled_from([*[""] * 14, "...\n", "# a", "---\na: 1\n", "\0", "\x1b[2J"]),
            "bytes": st.one_of(*[st.none()] * 8, byte_changes, st.sampled_from(["utf-16", "latin-1"])),
            "required": st.sampled_from([True, True, True, False]),
        }
    )
)
flags = commands.flatmap(
    lambda command: st.fixed_dictionaries(
        {
            "command": st.just(command),
            "flags": st.lists(
                st.one_of(
                    *[meant(command).map(lambda pair: (pair[0], [pair[1]], True, False))] * 5,
                    st.tuples(names(command), st.lists(values, max_size=3), st.booleans(), st.booleans()),
                ),
                max_size=5,
            ),
            "required": st.sampled_from([True, True, True, False]),
        }
    )
)
pairs = commands.flatmap(
    lambda command: st.tuples(
        st.just(command), st.sampled_from(NAMES[command]), st.one_of(texts, st.sampled_from(PLAIN + YAML))
    )
)


def required(command: str, given: set[str]) -> list[str]:
    """Flags for what a command cannot do without."""
    missing = [
        field.name
        for field in FIELDS[command]
        if field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
        and field.name not in given
    ]
    return [part for name in missing for part in (f"--{name}", "x")] + (
        ["--model", "x"] if command == "evaluate" else []
    )


def parse(command: str, argv: list[str]) -> tuple[Any, ...]:
    """The command's options, every field of its type and in its range."""
    parsed = parser.parse(GROUPS[command], argv, command)
    for group, instance in zip(GROUPS[command], parsed, strict=True):
        hints = get_type_hints(group, include_extras=True)
        for field in dataclasses.fields(group):
            value = getattr(instance, field.name)
            if group.__name__ != "ReIDTrainingArguments":  # transformers turns its own fields into other types
                assert fits(value, hints[field.name]), f"{field.name}: {type(value)} for {hints[field.name]}"
    return parsed


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, inner) for inner in arguments)
    if origin is Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(
            fits(key, arguments[0]) and fits(item, arguments[1]) for key, item in value.items()
        )
    if origin is not None:  # Annotated
        return fits(value, arguments[0]) and all(value in inner for inner in arguments[1:] if isinstance(inner, Range))
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return hint is Any or isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def build_yaml(value: dict[str, Any], root: Path) -> None:
    lines = [f"{name}: {text}\n" for name, text in value["lines"]]
    content = (value["start"] + "".join(lines) + value["end"]).encode("utf-8", "surrogatepass")
    if isinstance(value["bytes"], tuple):
        content = changed_bytes(content, value["bytes"])
    elif value["bytes"]:
        content = content.decode("utf-8", "replace").encode(value["bytes"], "replace")
    (root / "config.yaml").write_bytes(content)


def parse_yaml(value: dict[str, Any], root: Path) -> None:
    more = required(value["command"], {name for name, _ in value["lines"]}) if value["required"] else []
    parse(value["command"], [str(root / "config.yaml"), *more])


def parse_flags(value: dict[str, Any], root: Path) -> None:
    argv = []
    for name, of, equals, dashes in value["flags"]:
        flag = f"--{name.replace('_', '-') if dashes else name}"
        argv += [f"{flag}={of[0]}", *of[1:]] if equals and of else [flag, *of]
    more = required(value["command"], {name for name, *_ in value["flags"]}) if value["required"] else []
    try:
        parse(value["command"], [*argv, *more])
    except SystemExit as end:
        assert end.code == 0 and {"-h", "--help"} & {*argv, *more}, "exits"


def same_meaning(value: tuple[str, str, str], root: Path) -> None:
    """A text in quotes means in YAML what it means behind `--field=`."""
    command, name, text = value
    more = required(command, {name})
    if name in OVERRIDES:
        # A flag without effect is refused, and a line of a recipe is not: flags change what recipes set.
        more += [f"--{OVERRIDES[name].name}={OVERRIDES[name].remedy}"]
    (root / "config.yaml").write_text(f"{name}: {json.dumps(text)}\n")
    outcomes = []
    for argv in ([str(root / "config.yaml"), *more], [f"--{name}={text}", *more]):
        try:
            outcomes.append(str(parse(command, argv)))
        except UserError as error:
            # A long message is cut in its middle, wherever that is.
            outcomes.append(str(error).replace(f"{root}/config.yaml: ", "").replace(f"{command}: ", "")[:200])
    assert outcomes[0] == outcomes[1], f"{outcomes}"


test_few_examples, test_many_examples = make_tests(
    Area("YAML", 0.10, files, build_yaml, parse_yaml, writes=("x",)),
    Area("flags", 0.07, flags, lambda value, root: None, parse_flags, writes=("x",)),
    Area("YAML and flags", 0.03, pairs, lambda value, root: None, same_meaning, writes=("config.yaml", "x")),
)
