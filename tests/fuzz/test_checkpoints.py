"""Fuzz: checkpoints. A model that loads is the one that was saved; a weight that is missing or no number is refused."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_harness import Area, make_tests
from fuzz_models import FORMS, copied, disk, embedding, embedding_of, replace, replace_tensors
from hostile import byte_changes, changed_bytes, files_of_json, json_changes, write_changed
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModel

from modeling_mllmreid.utils.errors import is_our_fault

WEIGHTS = "model.safetensors"
# What the weights' file may go through, and whether the model can still be the same.
tensor_changes = st.tuples(
    st.sampled_from(["drop", "nan", "inf", "rename", "shape", "scalar", "half", "extra", "integer", "empty"]),
    st.integers(0, 500),
)
REFUSED = {"drop", "nan", "inf", "rename", "shape", "scalar", "empty"}
changes = st.one_of(
    st.tuples(st.just("config"), json_changes),
    st.tuples(st.just("config"), json_changes),
    st.tuples(st.just("json"), st.tuples(st.integers(0, 20), files_of_json)),
    st.tuples(st.just("json"), st.tuples(st.integers(0, 20), files_of_json)),
    st.tuples(st.just("tensors"), tensor_changes),
    st.tuples(st.just("tensors"), tensor_changes),
    st.tuples(st.just("weights"), byte_changes),
    st.tuples(st.just("remove"), st.integers(0, 20)),
    st.tuples(st.just("folder"), st.integers(0, 20)),
    st.tuples(st.just("pickle"), st.none()),
    st.tuples(
        st.just("shards"), st.sampled_from(["whole", "../model.safetensors", "/absent.safetensors", "absent", "other"])
    ),
    st.tuples(st.just("nothing"), st.none()),
)
checkpoints = st.tuples(st.sampled_from(FORMS), changes)


def build(value: Any, root: Path) -> None:
    form, (kind, how) = value
    folder = copied(getattr(disk(), form), root / "model")
    path = folder / WEIGHTS
    if kind == "config":
        write_changed(folder / "config.json", (folder / "config.json").read_bytes(), ("json", how))
    elif kind == "json":
        place, change = how
        files = sorted(folder.rglob("*.json"))
        target = files[place % len(files)]
        write_changed(target, target.read_bytes(), change)
    elif kind == "tensors":
        replace_tensors(path, changed_tensors(load_file(path), *how))
    elif kind == "weights":
        replace(path, changed_bytes(path.read_bytes(), how))
    elif kind in ("remove", "folder"):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        target = files[how % len(files)]
        target.unlink()
        if kind == "folder":
            target.mkdir()
    elif kind == "pickle":
        torch.save(load_file(path), path.with_name("pytorch_model.bin"))
        path.unlink()
    elif kind == "shards":
        shards(path, how)


def changed_tensors(tensors: dict[str, torch.Tensor], kind: str, place: int) -> dict[str, torch.Tensor]:
    """The weights with one of them changed."""
    # Statistics' counters are numbers without a shape: several changes leave them as they are.
    names = sorted(name for name in tensors if tensors[name].dim())
    floats = [name for name in names if tensors[name].is_floating_point() and tensors[name].numel()]
    name = floats[place % len(floats)]
    tensor = tensors[name]
    if kind in ("nan", "inf"):
        tensor = tensor.clone()
        tensor.view(-1)[place % tensor.numel()] = float(kind)
        return {**tensors, name: tensor}
    if kind in ("drop", "rename"):
        return {
            (f"{key}_x" if key == name else key): value
            for key, value in tensors.items()
            if key != name or kind == "rename"
        }
    new = {
        "shape": torch.cat([tensor.reshape(-1), torch.zeros(1, dtype=tensor.dtype)]),
        "scalar": torch.zeros((), dtype=tensor.dtype),
        "half": tensor.half() if tensor.is_floating_point() else tensor,
        "integer": tensor.to(torch.int32),
        "extra": tensor,
        "empty": tensor[:0] if tensor.dim() else tensor,
    }[kind]
    return {**tensors, name: new, **({"a.b": torch.zeros(3)} if kind == "extra" else {})}


def shards(path: Path, where: str) -> None:
    """The weights in two files with an index, one entry of which may lead elsewhere."""
    tensors = load_file(path)
    names = sorted(tensors)
    halves = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file_name, of_file in halves.items():
        replace_tensors(path.with_name(file_name), {name: tensors[name] for name in of_file})
    weight_map = {name: file_name for file_name, of_file in halves.items() for name in of_file}
    if where == "other":
        weight_map[names[0]] = "model-2.safetensors"
    elif where == "../model.safetensors":
        os.link(path, path.parent.parent / WEIGHTS)
        weight_map[names[0]] = where
    elif where != "whole":
        weight_map[names[0]] = where
    path.unlink()
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    path.with_name(f"{WEIGHTS}.index.json").write_text(json.dumps(index))


def load(value: Any, root: Path) -> None:
    form, (kind, how) = value
    if form == "native":
        return continue_from_native(root)
    found = embedding_of(root / "model")
    assert np.isfinite(found).all(), "the embedding holds NaN"
    same_meaning(kind, how, form, found)


def continue_from_native(root: Path) -> None:
    """A native LLaVA gets random heads: only that it loads whole can be said."""
    found = embedding_of(root / "model")
    assert np.isfinite(found).all(), "the embedding holds NaN"


def same_meaning(kind: str, how: Any, form: str, found: np.ndarray) -> None:
    """Where the weights or the files around them were changed, a model that loads is the same."""
    if kind == "tensors":
        assert how[0] not in REFUSED, f"loads with a weight changed: {how[0]}"
    if kind == "weights":
        assert how[0] in ("flip", "replace"), f"loads with bytes changed: {how[0]}"
    elif kind == "shards":
        # transformers reads every weight of a file that the index names, whichever weights it names it for.
        assert how in ("whole", "other"), f"loads shards by {how}"
    assert kind != "pickle", "loads a pickle"
    if kind in ("tensors", "shards", "remove", "nothing"):
        half = kind == "tensors" and how[0] == "half"
        np.testing.assert_allclose(found, embedding(form), atol=2e-2 if half else 1e-5)


def load_by_auto_class(value: Any, root: Path) -> None:
    """As others load it: a ValueError or an OSError says what is wrong, where it is not transformers that stumbles."""
    form, (kind, how) = value
    try:
        model = AutoModel.from_pretrained(root / "model")
    except Exception as error:
        if not is_our_fault(error):
            raise OSError("refused by transformers itself") from error
        raise
    if kind == "tensors":
        assert how[0] not in REFUSED, f"loads with {how[0]}"
    if kind not in ("weights", "json", "config"):
        whole = all(torch.isfinite(weight).all() for weight in model.parameters() if weight.is_floating_point())
        assert whole, "holds NaN"


ours = st.tuples(st.sampled_from(["full", "vision", "thin"]), changes)
test_few_examples, test_many_examples = make_tests(
    Area("checkpoints", 0.05, checkpoints, build, load),
    Area("checkpoints by the auto classes", 0.03, ours, build, load_by_auto_class, refusals=(ValueError, OSError)),
)
