"""Fuzz: the published layouts. Litter changes nothing, an odd file is read, left out by name, or one line."""

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from fuzz_harness import Area, make_tests
from hostile import (
    LITTER_FILES,
    LITTER_FOLDERS,
    NO_IMAGES,
    byte_changes,
    changed_bytes,
    changed_file,
    file_names,
    json_files,
)
from hypothesis import strategies as st
from trees import SMALL, write_tree

from modeling_mllmreid.data.contract import FEATURES, image_sources
from modeling_mllmreid.data.images import open_image
from modeling_mllmreid.data.load import load_reid_dataset

IMAGES = (".jpg", ".png", ".bmp", ".jpeg")
SETS = sorted(SMALL)
# These trees have hundreds of files.
SMALLER = {"prid": {"a": (200, 200), "b": (201, 201)}, "cuhk02": {"train": (20, 5)}}

where = st.integers(0, 500)
litter = st.tuples(st.just("litter"), where, st.sampled_from(LITTER_FILES + LITTER_FOLDERS))
odd = st.one_of(
    st.tuples(st.just("rename"), where, file_names),
    st.tuples(st.just("suffix"), where, st.sampled_from([".jpg", ".jpg.jpg", ".JPG", "", ".txt", ".png"])),
    st.tuples(st.just("add"), where, file_names),
    st.tuples(st.just("remove"), where, st.none()),
    st.tuples(st.just("folder"), where, st.none()),
    st.tuples(st.just("pipe"), where, st.none()),
    st.tuples(st.just("content"), where, st.sampled_from(NO_IMAGES)),
    st.tuples(st.just("link"), where, st.sampled_from(["/etc/passwd", "absent", "..", "."])),
    st.tuples(st.just("json"), where, json_files),
    st.tuples(st.just("bytes"), where, byte_changes),
    st.tuples(st.just("bytes"), where, byte_changes),
)
OPTIONS: dict[str, list[dict[str, Any]]] = {
    **dict.fromkeys(("viper", "prid", "grid", "ilids"), [{"split": 0}, {"split": 9}]),
    "cuhk03": [{"boxes": "detected"}, {"boxes": "labelled"}],
    "msmt17": [{"train_part": "with_val"}, {"train_part": "without_val"}],
}


def trees_of(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """The set's tree, mostly as it is published, with its own options or those of others."""
    none: list[dict[str, Any]] = [{}]
    return st.fixed_dictionaries(
        {
            "set": st.just(name),
            "litter": st.lists(litter, max_size=2),
            "odd": st.just([]) | st.lists(odd, min_size=1, max_size=1) | st.lists(odd, max_size=2),
            "on_error": st.sampled_from(["stop", "skip"]),
            "options": st.sampled_from([*none * 12, *OPTIONS.get(name, none) * 4, {"split": 10**6}, {"boxes": "none"}]),
        }
    )


trees = st.sampled_from(SETS).flatmap(trees_of)


@cache
def original(name: str) -> Path:
    """The set's small tree, made once."""
    return write_tree(Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-")), name, SMALLER.get(name, SMALL[name]))


@cache
def rows_of(name: str) -> dict[str, list[tuple[Any, ...]]]:
    """What the unchanged tree holds."""
    return rows(load_reid_dataset(name, data_dir=original(name)))


def rows(dataset) -> dict[str, list[tuple[Any, ...]]]:
    columns = ("file_name", "person_id", "camera_id", "caption")
    return {
        split: [(f, p, c, tuple(t)) for f, p, c, t in zip(*(part[n][:] for n in columns), strict=True)]
        for split, part in dataset.items()
    }


def build(value: dict[str, Any], root: Path) -> None:
    """The tree, its images linked, with what is odd in it."""
    shutil.copytree(original(value["set"]), root / "in", copy_function=link_or_copy)
    for kind, place, how in [*value["litter"], *value["odd"]]:
        files = sorted(path for path in (root / "in").rglob("*") if path.is_file() and not path.is_symlink())
        lists = [path for path in files if path.suffix not in IMAGES] or files
        path = (lists if kind in ("json", "bytes") else files)[
            place % len(lists if kind in ("json", "bytes") else files)
        ]
        change(kind, path, how)


def link_or_copy(source: str, target: str) -> None:
    if source.endswith(IMAGES):
        os.link(source, target)
    else:
        shutil.copyfile(source, target)


def change(kind: str, path: Path, how: Any) -> None:
    """Does one odd thing to a file or next to it; a file that is linked is replaced, never written to."""
    content = path.read_bytes()
    beside = path.parent / (
        how if kind in ("rename", "add", "litter") else path.name + how if kind == "suffix" else "x"
    )
    if kind in ("rename", "suffix", "add") and os.path.lexists(beside):
        return
    if kind == "rename" or (kind == "suffix" and how):
        path.rename(beside)
    elif kind == "add":
        beside.write_bytes(content)
    elif kind == "litter" and how in LITTER_FILES:
        beside.write_bytes(b"x")
    elif kind == "litter":
        beside.mkdir(exist_ok=True)
        shutil.copyfile(path, beside / path.name)
    elif kind != "suffix":
        path.unlink()
        if kind == "folder":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(how)
        elif kind == "content":
            path.write_bytes(how)
        elif kind == "bytes":
            path.write_bytes(changed_bytes(content, how))
        elif kind == "json":
            path.write_bytes(changed_file(content, how))


def act(value: dict[str, Any], root: Path) -> None:
    name = value["set"]
    options: dict[str, Any] = {"on_error": value["on_error"], "skipped_file": root / "skipped.txt"}
    if name in ("folders", "table"):
        options["splits_file"] = root / "out/splits.json"
    dataset = load_reid_dataset(name, data_dir=root / "in", **options, **value["options"])
    for split, part in dataset.items():
        assert set(FEATURES) <= set(part.column_names), f"{split}: lacks columns"
        assert min(part["person_id"][:], default=0) >= -1 and min(part["camera_id"][:], default=0) >= -1
        for source in image_sources(part)[:3]:
            assert Path(source).resolve().is_relative_to((root / "in").resolve()) or value["on_error"] == "stop"
            if value["on_error"] == "skip":
                open_image(source)
    if not value["odd"] and not value["options"] and name not in ("folders", "table"):
        assert rows(dataset) == rows_of(name), "litter changed what is read"


test_few_examples, test_many_examples = make_tests(
    Area("readers", 0.11, trees, build, act, writes=("out", "skipped.txt"))
)
