"""`calibrate`: chooses the threshold of a checkpoint again, on labelled people of the user's choice."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from datasets import Dataset, DatasetDict

from ..data.leakage import shared_people_lines
from ..data.load import load_reid_dataset
from ..data.splits import split_query_gallery
from ..evaluation.calibration_fit import LEAST_PEOPLE, PRECISION
from ..evaluation.onnx_files import refuse_single_file
from ..evaluation.report import align
from ..evaluation.threshold import EARLIER_FILE, THRESHOLD_FILE, Threshold, load_thresholds, replace_thresholds
from ..evaluation.threshold_fit import fit_thresholds
from ..model.shipped_models import shipped_name
from ..options.arguments import BatchSizeArguments, ModelArguments
from ..options.data_arguments import DataArguments
from ..options.parser import parse
from ..training.loading import load_ready_encoder
from ..training.seen_people import refuse_test_people, refuse_train_people
from ..utils.errors import UserError
from ..utils.outputs import check_output
from ..utils.processes import on_main
from ..utils.report_formats import is_known_json


@dataclass
class CalibrateArguments:
    """The people to calibrate on."""

    people: Literal["train", "test"] = field(
        metadata={
            "help": "The people, of no training and no reported result: the train split, or query and gallery (test)."
        }
    )


def main(argv: list[str]) -> None:
    """Fits threshold, calibration and fusion on labelled people, and stores them in the checkpoint's threshold.json.

    The processes share the images and pairs; process 0 does everything else.
    """
    groups = (ModelArguments, DataArguments, CalibrateArguments, BatchSizeArguments)
    model_args, data_args, args, batch_args = parse(groups, argv, "calibrate")
    before = on_main(check_checkpoint, model_args.model)
    notes: list[str] = []
    dataset = load_reid_dataset(data_args.dataset, notes=notes, **data_args.options())
    if args.people == "test":
        seen = "a model that was trained on this train split has seen them"
        notes += [f"warning: {line}: {seen}" for line in shared_people_lines(dataset)]
    on_main(print, "".join(f"{note}\n" for note in notes), end="")
    query, gallery = query_and_gallery(dataset, args.people, data_args.dataset)
    model, processor = load_ready_encoder(model_args, {})
    if args.people == "train":
        on_main(refuse_train_people, model.config, dataset["train"], Path(model_args.model), processor)
    else:
        on_main(refuse_test_people, model.config, query)
    thresholds, no_fusion = fit_thresholds(model, processor, query, gallery, **asdict(batch_args))
    if model.config.test_feature not in thresholds:
        raise UserError(
            f"people {args.people}: no threshold of the feature {model.config.test_feature!r}: no query has a match in "
            "the gallery, or the model gives all images one embedding: give other people, or another model"
        )
    if no_fusion:
        raise UserError(f"people {args.people}: no fusion of pair scores: {no_fusion}: give more people")
    on_main(replace_thresholds, model_args.model, thresholds)
    on_main(report, model_args.model, before, thresholds)


def check_checkpoint(model: str) -> dict[str, Threshold]:
    """Returns the thresholds of a checkpoint before the work. Raises UserError if new ones cannot be stored in it."""
    refuse_single_file(model)
    if not os.path.isdir(model):
        raise UserError(
            f"model {model}: is no folder, where the result can be stored: download a model of the Hub first (hf "
            f"download {model} --local-dir FOLDER) and give --model FOLDER"
        )
    if shipped_name(path := os.path.realpath(model)) != path:
        raise UserError(
            f"model {shipped_name(path)}: comes with the package and is not changed: copy it (cp -r {model} FOLDER) "
            "and give --model FOLDER"
        )
    before = load_thresholds(model)
    for file in (THRESHOLD_FILE, EARLIER_FILE):
        if os.path.islink(Path(model, file)):  # as all files in the cache of the Hub
            raise UserError(
                f"model {model}: its {file} is a symbolic link, which is not replaced: copy the checkpoint (cp -rL "
                f"{model} FOLDER) and give --model FOLDER"
            )
        check_output(Path(model, file), ours=is_known_json)
    return before


def query_and_gallery(dataset: DatasetDict, people: str, name: str) -> tuple[Dataset, Dataset]:
    """Returns the queries and the gallery of the chosen people. Raises UserError if they are missing or too few."""
    needed = ("train",) if people == "train" else ("query", "gallery")
    if not set(needed) <= dataset.keys():
        other = "test" if people == "train" else "train"
        raise UserError(
            f"people {people}: data set {name} has {', '.join(dataset)}, and not {' and '.join(needed)}: give "
            f"--people {other}, or another data set"
        )
    query, gallery = split_query_gallery(dataset["train"]) if people == "train" else (dataset[n] for n in needed)
    count = len(query.unique("person_id"))
    if count < LEAST_PEOPLE:
        raise UserError(
            f"people {people}: the queries show {count} people, and {LEAST_PEOPLE} are needed: give more people, each "
            "with images of two cameras or of unknown cameras"
        )
    return query, gallery


def report(folder: str, before: Mapping[str, Threshold], now: Mapping[str, Threshold]) -> None:
    """Prints the values of each feature before and now, and where they are stored."""
    lines = [["", "before", "now"]]
    for feature in {**now, **before}:
        old, new = (_values(side[feature]) if feature in side else {} for side in (before, now))
        lines += [[f"{feature}, {name}", old.get(name, "-"), new.get(name, "-")] for name in {**old, **new}]
    first = next(iter(now.values()))
    print(f"{first.people:,} people, {first.searches:,} searches in {first.gallery:,} images")
    print(f"{align(lines)}\nIn brackets: 95 % interval.")
    if missing := [feature for feature, threshold in now.items() if threshold.calibration is None]:
        print(f"no calibration of {', '.join(missing)}: no groups reach a pairwise precision of {PRECISION}")
    kept = f"; the earlier ones: {Path(folder, EARLIER_FILE)}" if before else ""
    print(f"thresholds: {Path(folder, THRESHOLD_FILE)}{kept}")


def _values(threshold: Threshold) -> dict[str, str]:
    """Returns what a threshold, its calibration and its fusion show in the table, by name."""
    values = {"threshold": f"{threshold.distance:.4f} [{threshold.low:.4f}, {threshold.high:.4f}]"}
    if threshold.calibration is not None:
        values["log odds to join groups"] = f"{threshold.calibration.least:g}"
    if (fusion := threshold.fusion) is not None:
        values["constant of the fusion"] = f"{fusion.constant:.2f}"
        values["share of the pair score"] = f"{fusion.share:.2f} [{fusion.low:.2f}, {fusion.high:.2f}]"
        values["calibration error"] = f"{fusion.ece_after:.3f}"
    return values
