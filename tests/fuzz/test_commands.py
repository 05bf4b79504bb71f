"""Fuzz: whole commands on a tiny model, one or two of their fields with a value that was not meant for them."""

import dataclasses
import importlib
import json
import os
from pathlib import Path
from typing import Any, get_type_hints

from fuzz_commands import GROUPS, PLAIN
from fuzz_harness import NEW, Area, make_tests
from fuzz_models import copied, disk
from hostile import json_values, texts
from hypothesis import strategies as st

SMALL = ["--batch_size", "4", "--max_new_tokens", "2"]


def flags_of(command: str, root: Path) -> list[str]:
    """A command line that works."""
    models, out = disk(), str(root / "out")
    market = ["--dataset", "market1501", "--data_dir", str(root / "people")]
    captions = ["--captions_file", str(root / "people/reid_raw.json")]
    return {
        "data": [*market, "--output_dir", out],
        "prepare": [*market, *captions, "--output", out],
        "evaluate": [*market, "--model", str(models.full), "--output_dir", out],
        "embed": ["--model", str(models.full), "--images", str(root / "people/query"), "--output", out],
        "search": [
            "--query",
            str(root / "query.jpg"),
            "--embeddings",
            str(models.index),
            "--output",
            str(root / "out.png"),
        ],
        "export": ["--model", str(models.full), "--output", out],
        "continuations": [*market, *captions, "--model", str(models.native), "--output", f"{out}.jsonl", *SMALL],
        "train": [
            *market,
            *captions,
            "--model",
            str(models.native),
            "--output_dir",
            out,
            "--dry_run",
            "true",
            "--use_cpu",
        ],
    }[command]


COMMANDS = ["data", "prepare", "evaluate", "embed", "search", "export", "continuations", "train"]
# All within the example's folder: as root a fault could replace a device or a file of the system.
PATHS = [
    "people",
    "people/reid_raw.json",
    "query.jpg",
    "precious.txt",
    "pipe",
    "link",
    "absent/x",
    "precious.txt/x",
    "",
]
# Values that rightly start hours of work, or processes.
LONG = {"num_workers", "height", "width", "push_to", "onnx"}
values = st.one_of(
    st.sampled_from(PLAIN),
    st.sampled_from(PATHS).map(lambda path: f"{{root}}/{path}"),
    texts.filter(lambda text: not text.startswith(("/", "~")) and ".." not in text),
    json_values.map(lambda value: json.dumps(value)),
)


def changes(command: str) -> st.SearchStrategy:
    """One or two fields of a command with a value that may be meant for them, or is not."""
    hints = {name: hint for group in GROUPS[command] for name, hint in get_type_hints(group).items()}
    own = [field.name for group in GROUPS[command] for field in dataclasses.fields(group) if field.init]
    if command == "train":
        # transformers has fields for every launcher and service; those of the method are ours.
        stock = {field.name for field in dataclasses.fields(GROUPS[command][-1])}
        own = [name for name in own if name not in stock]
    own = [name for name in own if name not in LONG]
    meant = [(name, value) for name in own for value in GOOD.get(hints[name], ())]
    one = st.one_of(st.tuples(st.sampled_from(own), values), st.sampled_from(meant or [("help", "")]))
    return st.tuples(st.just(command), st.lists(one, min_size=1, max_size=2))


GOOD: dict[Any, tuple[str, ...]] = {
    bool: ("true", "false"),
    bool | None: ("true", "false"),
    int: ("1", "2", "3"),
    int | None: ("0", "1"),
    float: ("0.5", "1"),
    float | None: ("0.5", "0"),
}


def build(value: Any, root: Path) -> None:
    copied(disk().people, root / "people")
    (root / "query.jpg").write_bytes(sorted((disk().people / "query").iterdir())[0].read_bytes())
    (root / "precious.txt").write_text("not ours")
    (root / "link").symlink_to("precious.txt")
    os.mkfifo(root / "pipe")


def act(value: Any, root: Path) -> None:
    command, changed = value
    more = [f"--{name}={text.replace('{root}', str(root))}" for name, text in changed]
    try:
        importlib.import_module(f"modeling_mllmreid.commands.{command}").main([*flags_of(command, root), *more])
    except SystemExit as end:
        assert end.code == 0, "exits"


test_few_examples, test_many_examples = make_tests(
    Area(
        "commands",
        0.03,
        st.sampled_from(COMMANDS).flatmap(changes),
        build,
        act,
        writes=(NEW,),
    )
)
