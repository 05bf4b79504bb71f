"""Fuzz: JSON from outside. It follows its format, or an error names the file and the field in one line."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from fuzz_harness import Area, make_tests
from fuzz_models import copied, disk, replace
from hostile import files_of_json, write_changed
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from modeling_mllmreid.commands import export, search
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.evaluation.report import data_set_matrix
from modeling_mllmreid.evaluation.threshold import load_thresholds
from modeling_mllmreid.retrieval.embeddings import FEATURES_FILE, METADATA_FILE, _digest, load_embeddings

# ---- reports next to a checkpoint ----------------------------------------------------------------------------------

REPORTS = ["metrics.json", "run.json", "trainer_state.json", "training_args.json", "threshold.json"]
reports = st.tuples(st.sampled_from(REPORTS), files_of_json)
read_reports = st.tuples(st.sampled_from(["metrics.json", "threshold.json"]), files_of_json)


def build_report(value: Any, root: Path) -> None:
    name, change = value
    write_changed(root / name, (disk().vision / name).read_bytes(), change)


def read_report(value: Any, root: Path) -> None:
    name, _ = value
    if name == "threshold.json":
        for threshold in load_thresholds(str(root)).values():
            numbers = (threshold.distance, threshold.low, threshold.high, threshold.fpir, threshold.tpir)
            if threshold.fusion is not None:
                numbers += (threshold.fusion.score, -threshold.fusion.distance, threshold.fusion.share)
            assert all(
                isinstance(number, int | float) and math.isfinite(number) and number >= 0 for number in numbers
            ), "a threshold is no number"
    else:
        matrix = data_set_matrix([root / name])
        for cell in matrix.cells.values():
            for metric in ("mAP", "rank1"):
                assert cell[metric] is None or 0 <= cell[metric] <= 1, "a metric is no share"
        matrix.format()


def build_checkpoint(value: Any, root: Path) -> None:
    name, change = value
    folder = copied(disk().vision, root / "model")
    write_changed(folder / name, (folder / name).read_bytes(), change)


def write_export(value: Any, root: Path) -> None:
    """The export's card has what the reports say, or the export is refused."""
    export.main(["--model", str(root / "model"), "--output", str(root / "out")])
    card = (root / "out/README.md").read_text()
    assert card.startswith("---\n") and "NaN" not in card


# ---- an index ------------------------------------------------------------------------------------------------------

indexes = st.fixed_dictionaries(
    {
        "json": files_of_json | st.none(),
        "digest": st.sampled_from(["new", "new", "old"]),
        "features": st.sampled_from(["same", "same", "same", "nan", "fewer", "flat", "double", "none"]),
        "command": st.sampled_from([False, False, False, True]),
    }
)


def build_index(value: dict[str, Any], root: Path) -> None:
    folder = copied(disk().index, root / "index")
    content = (folder / METADATA_FILE).read_bytes()
    if value["json"] is not None:
        write_changed(folder / METADATA_FILE, content, value["json"])
    features = load_file(folder / FEATURES_FILE)["features"]
    changed = {
        "same": features,
        "nan": np.full_like(features, np.nan),
        "fewer": features[:-1],
        "flat": features.reshape(-1),
        "double": features.astype(np.float64),
        "none": features[:0],
    }[value["features"]]
    if value["digest"] == "new" and (folder / METADATA_FILE).is_file():
        content = (folder / METADATA_FILE).read_bytes()
        (folder / FEATURES_FILE).unlink()
        metadata = {"facts_sha256": _digest(content)}
        save_file({"features": np.ascontiguousarray(changed)}, folder / FEATURES_FILE, metadata=metadata)
    first = sorted((disk().people / "query").iterdir())[0]
    replace(root / "query.jpg", first.read_bytes())


def read_index(value: dict[str, Any], root: Path) -> None:
    stored = load_embeddings(root / "index")
    assert stored.features.ndim == 2 and len(stored.features) == len(stored.file_names), "counts differ"
    assert all(isinstance(name, str) for name in stored.file_names) and np.isfinite(stored.features).all()
    if value["command"]:
        flags = ["--query", str(root / "query.jpg"), "--embeddings", str(root / "index"), "--top_k", "3"]
        search.main([*flags, "--output", str(root / "out.png")])
        assert (root / "out.png").stat().st_size


# ---- splits of own data --------------------------------------------------------------------------------------------

splits = st.tuples(files_of_json, st.sampled_from(["stop", "skip"]))
NAMES = {"train": ["a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"], "query": ["c/0.jpg", "d/0.jpg"]}
SPLITS = {**NAMES, "gallery": ["c/1.jpg", "d/1.jpg"]}


def build_splits(value: Any, root: Path) -> None:
    first = sorted((disk().people / "query").iterdir())[0].read_bytes()
    for names in SPLITS.values():
        for name in names:
            path = root / "in" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(first)
    write_changed(root / "in/splits.json", json.dumps(SPLITS).encode(), value[0])


def read_splits(value: Any, root: Path) -> None:
    dataset = load_reid_dataset(
        "folders", data_dir=root / "in", on_error=value[1], skipped_file=str(root / "skipped.txt")
    )
    names = [name for part in dataset.values() for name in part["file_name"][:]]
    assert len(set(names)) == len(names), "an image is in two parts"
    people = {name: set(part["person_id"][:]) for name, part in dataset.items()}
    assert not people.get("train", set()) & (people.get("query", set()) | people.get("gallery", set())), "shared people"


test_few_examples, test_many_examples = make_tests(
    Area("reports", 0.05, read_reports, build_report, read_report),
    Area("reports and export", 0.02, reports, build_checkpoint, write_export, writes=("out",)),
    Area("indexes", 0.05, indexes, build_index, read_index, writes=("out.png",)),
    Area("splits", 0.03, splits, build_splits, read_splits, writes=("skipped.txt", "in/splits.json")),
)
