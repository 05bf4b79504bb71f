"""Fuzz: sidecars. What is read is what was written, a torn line is cut, and nothing foreign is appended to."""

from pathlib import Path
from typing import Any

from fuzz_harness import Area, make_tests
from fuzz_models import disk
from hostile import byte_changes, changed_bytes, changed_file, json_files
from hypothesis import strategies as st

from modeling_mllmreid.data.captions import CaptionRecord, TextRecord, append_records, read_records
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.text.sidecar import Sidecar

KINDS = {"captions": CaptionRecord, "texts": TextRecord}
PROVENANCE = {"model": "m", "revision": None, "instruction": "i", "max_new_tokens": 4}
files = st.fixed_dictionaries(
    {
        "file": st.sampled_from(sorted(KINDS)),
        "read_as": st.sampled_from(["own", "own", "own", "other"]),
        "lines": st.lists(st.tuples(st.integers(0, 20), json_files), max_size=2) | st.just([]),
        "bytes": st.none() | st.none() | byte_changes,
        "torn": st.sampled_from([0.0, 0.0, 0.5, 0.9]),
        "end": st.sampled_from(["", "", "", "\n", "\r\n", "{}\n", "x", "null\n"]),
    }
)


def build(value: dict[str, Any], root: Path) -> None:
    lines = getattr(disk(), value["file"]).read_bytes().splitlines(keepends=True)
    for place, change in value["lines"]:
        lines[place % len(lines)] = changed_file(lines[place % len(lines)], change) + b"\n"
    last = lines[-1]
    content = b"".join(lines) + last[: int(value["torn"] * len(last))] + value["end"].encode()
    (root / "a.jsonl").write_bytes(content if value["bytes"] is None else changed_bytes(content, value["bytes"]))


def kind_of(value: dict[str, Any]) -> Any:
    return [kind for name, kind in KINDS.items() if (name == value["file"]) == (value["read_as"] == "own")][0]


def append(value: dict[str, Any], root: Path) -> None:
    """Reads, appends, and reads both again."""
    kind, path = kind_of(value), root / "a.jsonl"
    before = read_records(path, kind)
    key = ("market1501", "train", "new.jpg", 0, "a man \u2028 \U0001f600")
    new = kind(*key, *(["walks"] if kind is TextRecord else []), PROVENANCE)
    append_records(path, [new])
    assert read_records(path, kind) == [*before, new], "other records"
    assert all(isinstance(record.caption, str) and record.caption_index >= 0 for record in before)


def write(value: dict[str, Any], root: Path) -> None:
    """A writer goes on with a file of the same settings, and leaves any other as it is."""
    kind, path = kind_of(value), root / "a.jsonl"
    before = read_records(path, kind)
    with Sidecar(path, kind, PROVENANCE) as sidecar:
        assert sidecar.records == before and all(record.provenance == PROVENANCE for record in before)


def join(value: dict[str, Any], root: Path) -> None:
    """Captions and continuations go to their own images alone."""
    people = disk().people
    if value["file"] == "captions":
        dataset = load_reid_dataset("market1501", data_dir=people, captions_file=root / "a.jsonl")
        written = {(r.file_name, r.caption) for r in read_records(root / "a.jsonl", CaptionRecord)}
        pairs = zip(*(dataset["train"][name][:] for name in ("file_name", "caption")), strict=True)
        assert {(name, text) for name, texts in pairs for text in texts} <= written, "a caption from nowhere"
    else:
        captions = people / "reid_raw.json"
        dataset = load_reid_dataset("market1501", data_dir=people, captions_file=captions, texts=root / "a.jsonl")
        written = {(r.file_name, r.caption, r.continuation) for r in read_records(root / "a.jsonl")}
        columns = (dataset["train"][name][:] for name in ("file_name", "caption", "continuation"))
        for name, texts, continuations in zip(*columns, strict=True):
            joined = {(name, *pair) for pair in zip(texts, continuations, strict=True)}
            assert joined <= written, "a continuation from nowhere"


test_few_examples, test_many_examples = make_tests(
    Area("sidecars", 0.03, files, build, append, writes=("a.jsonl",)),
    Area("writers of sidecars", 0.01, files, build, write, writes=("a.jsonl",)),
    Area("joined sidecars", 0.01, files, build, join),
)
