"""Measures a model on the test sets of the leaderboard, and adds its row.

python benchmarks/leaderboard.py --model MODEL [--name NAME] [--outside FOLDER] [--data runs/data] [--field value ...]
python benchmarks/leaderboard.py --histogram [--outside FOLDER] [--data runs/data]
python benchmarks/leaderboard.py

The first takes any model of `mllmreid evaluate`, with its options; the second measures the colour histogram, the
baseline; the third writes the page again. Rendered worlds are rendered into `--data` at their first use. `--outside` is
a folder in Market-1501 layout with the outside crops of the other rows.

A row belongs to a commit, so the code must be committed. A model that names a test set among its training sets gets no
row. The row is added to benchmarks/leaderboard.jsonl, and docs/leaderboard.md is written from that file.
"""

import argparse
import datetime
import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timing
from datasets import DatasetDict
from leaderboard_page import (
    IDENTITY,
    LINES,
    METRICS,
    OUTSIDE,
    PAGE,
    TESTS,
    percent,
    read_lines,
    shown,
    with_row,
    write,
)
from PIL import Image

import modeling_mllmreid
from modeling_mllmreid.data.leakage import overlaps
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.evaluation.metrics import RetrievalMetrics
from modeling_mllmreid.evaluation.onnx_encoder import OnnxEncoder, check_onnx_options, print_onnx
from modeling_mllmreid.evaluation.protocol import (
    color_histogram,
    histogram_metrics,
    metrics_by_feature,
    protocol_features,
    same_person,
)
from modeling_mllmreid.evaluation.run import people_intervals
from modeling_mllmreid.options.arguments import EmbeddingArguments, MethodArguments, ModelArguments, OnnxArguments
from modeling_mllmreid.options.parser import parse
from modeling_mllmreid.retrieval.embeddings import weights_digest
from modeling_mllmreid.training.embedder import load_embedder
from modeling_mllmreid.training.loading import model_commit
from modeling_mllmreid.utils.errors import UserError

ROOT = Path(__file__).parents[1]
# What computes a row.
CODE = ("modeling_mllmreid", "benchmarks/leaderboard.py", "benchmarks/leaderboard_page.py")


def arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options of this script, and those of `mllmreid evaluate`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", help="Checkpoint, name on the Hub, vision encoder or ONNX file.")
    parser.add_argument("--histogram", action="store_true", help="Measure the colour histogram instead of a model.")
    parser.add_argument("--name", help="Name of the row. Default: that of the model.")
    parser.add_argument("--outside", type=Path, help="Folder of the outside crops, in Market-1501 layout.")
    parser.add_argument("--data", type=Path, default=ROOT / "runs/data", help="Folder of the rendered worlds.")
    options, rest = parser.parse_known_args(argv)
    if options.histogram and (options.model or options.name or rest):
        parser.error("the histogram has no model, name or settings: leave them out")
    if not (options.histogram or options.model) and (options.outside or options.name or rest):
        parser.error("model is not given: add --model")
    return options, rest


def clean_commit() -> str:
    """Returns the commit of the code that runs. Raises UserError if it differs from the commit, or has none."""
    package = Path(modeling_mllmreid.__file__).parent
    if not package.samefile(ROOT / "modeling_mllmreid"):
        raise UserError(f"{package}: is not the code of this checkout: pip install -e {ROOT}")
    head, changed = (_git(*words) for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", *CODE)))
    if changed:
        raise UserError(f"{changed.splitlines()[0].split()[-1]}: differs from the commit of the row: commit it first")
    return head


def _git(*words: str) -> str:
    result = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
    if result.returncode:
        raise UserError(f"{ROOT}: git {words[0]} fails ({result.stderr.strip()[:200]}): measure in a checkout with git")
    return result.stdout.strip()


def neutral(path: str | Path) -> str:
    """Returns a path for the recorded command: relative to the checkout, or its last name; other names unchanged."""
    if not os.path.exists(path):
        return str(path)
    full = Path(os.path.abspath(path))
    return full.relative_to(ROOT).as_posix() if full.is_relative_to(ROOT) else full.name


def recorded_command(options: argparse.Namespace, rest: Sequence[str]) -> str:
    """Returns the command without paths of this machine. The worlds are the same wherever they are."""
    words = ["python", "benchmarks/leaderboard.py"]
    words += ["--histogram"] if options.histogram else ["--model", neutral(options.model)]
    words += ["--name", options.name] if options.name else []
    words += ["--outside", neutral(options.outside)] if options.outside else []
    return shlex.join([*words, *rest])


def load_test_sets(
    options: argparse.Namespace, rows: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[DatasetDict, str]]:
    """Loads each test set, with the SHA-256 of its images. Raises UserError for other outside crops than the rows'."""
    found = {}
    for test in TESTS:
        folder = options.outside if test == OUTSIDE else options.data / test
        if folder is not None:
            dataset = load_reid_dataset("market1501" if test == OUTSIDE else test, data_dir=folder)
            found[test] = (dataset, images_digest(dataset, folder))
    known = {row["results"][OUTSIDE]["images"] for row in rows if OUTSIDE in row["results"]}
    if OUTSIDE in found and known and found[OUTSIDE][1] not in known:
        raise UserError(f"outside {options.outside}: are other crops than those of the leaderboard: leave it out")
    return found


def images_digest(dataset: DatasetDict, folder: Path) -> str:
    """Returns the SHA-256 of the names and bytes of the test images."""
    digest = hashlib.sha256()
    for name in sorted(name for split in ("query", "gallery") for name in dataset[split]["file_name"][:]):
        digest.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()


class Histogram:
    """The colour histogram of the crop's stripes, a baseline without a model."""

    device = "cpu"

    def __init__(self) -> None:
        self.description: dict[str, Any] = {"name": "colour histogram", "weights": None, "revision": None}
        self.description |= {"settings": {"feature": "histogram"}, "parameters": 0, "trained_on": []}

    def evaluate(self, dataset: DatasetDict) -> tuple[RetrievalMetrics, int]:
        """Returns the metrics, and the number of values of the feature."""
        query, gallery = dataset["query"], dataset["gallery"]
        return histogram_metrics(query, gallery, same_person(query, gallery)), len(
            color_histogram(Image.new("RGB", (64, 128)))
        )


class Model:
    """Any model of `mllmreid evaluate`.

    Args:
        options (`argparse.Namespace`): The model, and the name of its row.
        rest (`Sequence[str]`): Options of `mllmreid evaluate`.

    Raises:
        UserError: The model cannot be loaded, an option is wrong, or nothing identifies the weights.
    """

    def __init__(self, options: argparse.Namespace, rest: Sequence[str]):
        groups = (ModelArguments, MethodArguments, OnnxArguments, EmbeddingArguments)
        model_args, method, onnx, embedding = parse(groups, ["--model", options.model, *rest], "evaluate")
        check_onnx_options(onnx, [model_args.model])
        self.model, self.processor = model, processor = load_embedder(model_args, method.given(), onnx)
        print_onnx(model)
        self.options, self.feature = asdict(embedding), model.config.test_feature
        self.device = "cpu" if isinstance(model, OnnxEncoder) else model.device.type
        weights = model.file.digest if isinstance(model, OnnxEncoder) else weights_digest(model_args.model) or None
        revision = None if weights else model_commit(model_args)
        if not (weights or revision):
            raise UserError(f"model {options.model}: has no *.safetensors to identify it: save it with save_pretrained")
        size = {"height": processor.height, "width": processor.width, "dtype": str(model.dtype).removeprefix("torch.")}
        settings = {"feature": self.feature, **size, "flip_test": embedding.flip_test, **method.given()}
        settings |= {"onnx": model.settings.options()} if isinstance(model, OnnxEncoder) else {}
        name = options.name or Path(model_args.model_name).name
        self.description = {"name": name, "weights": weights, "revision": revision, "settings": settings}
        self.description |= {"parameters": parameters(model), "trained_on": sorted(model.config.trained_on or [])}

    def evaluate(self, dataset: DatasetDict) -> tuple[RetrievalMetrics, int]:
        """Returns the metrics of the test feature, and the number of its values."""
        found = protocol_features(self.model, self.processor, dataset, **self.options)
        query = {self.feature: found.query[self.feature]}
        return metrics_by_feature(query, found.gallery, found.rule)[self.feature], query[self.feature].shape[1]


def parameters(model: Any) -> int:
    """Returns the number of parameters of a loaded model; of an ONNX file, the numbers that are stored in it."""
    if not isinstance(model, OnnxEncoder):
        return sum(parameter.numel() for parameter in model.parameters())
    import onnx  # part of the extra `onnx`, as the file itself

    return sum(int(np.prod(tensor.dims)) for tensor in onnx.load(model.file.path).graph.initializer)


def refuse_no_row(description: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises UserError for a model that has seen test people, or a name and a model that do not belong together."""
    # The test sets have no people to train on, so every use of one in training is of its test people.
    seen = overlaps([f"{name.partition(':')[0]}:all" for name in description["trained_on"]], TESTS)
    if seen:
        raise UserError(f"model {description['name']}: has seen people of the test ({'; '.join(seen)}): it gets no row")
    for row in shown(rows):
        same_name, same = row["name"] == description["name"], all(row[k] == description[k] for k in IDENTITY)
        if same and not same_name:
            raise UserError(f"name {description['name']}: this model has the row {row['name']!r}: give that --name")
        if same_name and not same:
            raise UserError(f"name {row['name']}: is the row of other weights or settings: give another --name")


def result(metrics: RetrievalMetrics, dataset: DatasetDict, images: str) -> dict[str, Any]:
    """Returns the intervals and sizes of a test set for the row. Raises UserError if its queries show one person."""
    persons = np.asarray(dataset["query"]["person_id"][:])
    intervals = people_intervals(metrics, persons)
    if not intervals:
        raise UserError("outside: the queries show fewer than two people, so there are no intervals: leave it out")
    people = len(np.unique(persons[~np.isnan(metrics.average_precision)]))
    counts = {"people": people, "queries": metrics.num_valid, "gallery_images": len(dataset["gallery"])}
    return {key: intervals[key].to_dict() for key in METRICS} | counts | {"images": images}


def versions(description: Mapping[str, Any]) -> dict[str, str]:
    """Returns the versions of Python and of the libraries that computed a row."""
    libraries = ["torch", "transformers", "numpy", "pillow"]
    libraries += ["onnxruntime"] if "onnx" in description["settings"] else []
    return {"python": platform.python_version(), **{name: version(name) for name in libraries}}


def add_row(options: argparse.Namespace, rest: Sequence[str]) -> dict[str, Any]:
    """Measures, writes the lines and the page, and returns the row."""
    commit, rows = clean_commit(), read_lines(ROOT)
    measured = Histogram() if options.histogram else Model(options, rest)
    refuse_no_row(measured.description, rows)
    results = {}
    for test, (dataset, images) in load_test_sets(options, rows).items():
        print(f"{test}: {len(dataset['query']):,} queries, {len(dataset['gallery']):,} gallery images", flush=True)
        metrics, size = measured.evaluate(dataset)
        results[test] = result(metrics, dataset, images)
    row = {**measured.description, "embedding_size": size, "results": results}
    row |= {"date": datetime.date.today().isoformat(), "commit": commit, "command": recorded_command(options, rest)}
    row |= {"versions": versions(row), "machine": timing.hardware(measured.device)}
    # Read again: another run may have added a row in the meantime.
    write(ROOT, with_row(read_lines(ROOT), row))
    return row


def main(argv: Sequence[str] | None = None) -> None:
    """Adds a row, or writes the page again. A user's mistake is one line and the exit code 2."""
    options, rest = arguments(argv)
    try:
        if options.model is None and not options.histogram:
            write(ROOT, read_lines(ROOT))
        else:
            row = add_row(options, rest)
            for test, values in row["results"].items():
                shares = (f"{title} {percent(values[key])}" for key, title in METRICS.items())
                print(f"{row['name']}, {test}: {', '.join(shares)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from error
    print(f"row: {LINES}\npage: {PAGE}" if options.model or options.histogram else f"page: {PAGE}")


if __name__ == "__main__":
    main()
