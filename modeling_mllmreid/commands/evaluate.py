"""`evaluate`: computes the retrieval metrics of a model on the query and gallery splits of a data set."""

import inspect
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ..data.contract import join_names
from ..data.leakage import shared_people_lines
from ..data.load import load_reid_dataset
from ..data.readers import READERS
from ..data.seen_images import people_seen
from ..evaluation.metrics import RetrievalMetrics
from ..evaluation.onnx_encoder import OnnxConfig, check_onnx_options, print_onnx
from ..evaluation.onnx_files import find_onnx
from ..evaluation.plots import figure_class
from ..evaluation.protocol import metrics_by_feature, protocol_features
from ..evaluation.report import data_set_matrix
from ..evaluation.run import EvaluateArguments, evaluate_and_report, report_splits
from ..evaluation.several_models import FurtherModel, Loaded, PairOdds, pair_odds_of
from ..evaluation.verified_report import fusion_of
from ..options.arguments import EmbeddingArguments, MethodArguments, ModelArguments, OnnxArguments
from ..options.data_arguments import DataArguments
from ..options.parser import HELP, parse
from ..training.embedder import load_embedder
from ..training.loading import load_config
from ..utils.errors import UserError
from ..utils.json_files import read_json
from ..utils.outputs import check_output, write_json
from ..utils.processes import on_main
from ..utils.report_formats import RunFile


@dataclass
class EvaluatedModel(ModelArguments):
    """The model, its number format, and the models to compare it with."""

    model: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Checkpoint, multimodal LLM or vision encoder, or FILE.onnx."}
    )
    compare: list[str] = field(
        default_factory=list,
        metadata={"help": "Checkpoints to compare with the model; without --model, with the first of them."},
    )
    verify_with: list[str] = field(
        default_factory=list,
        metadata={"help": "Models that order the verify_top nearest images together with the model."},
    )

    def __post_init__(self) -> None:
        if self.model is None and self.compare:
            self.model, *self.compare = self.compare
            if not self.compare:
                raise ValueError(f"compare names {self.model} alone: give the other model too, or --model in its place")
        if self.model is None:
            raise ValueError("model is not given: add --model, or --compare with two checkpoints")
        super().__post_init__()
        for name in self.compare:
            ModelArguments(name)  # refuses a misspelt name before the work
        seen = {_place(self.model)}
        for name in self.verify_with:
            place = _place(ModelArguments(name).model)
            if place in seen:
                raise ValueError(f"verify_with: {name} is there twice, and each model counts once: leave it out")
            seen.add(place)

    def other(self, name: str) -> ModelArguments:
        """Returns the arguments of another model, of the same revision and number format."""
        return ModelArguments(name, self.revision, self.dtype)


def _place(model: str) -> str:
    """Returns what two names of one model have in common: the folder, or the name on the Hub."""
    return os.path.realpath(model) if os.path.exists(model) else model


@dataclass
class MatrixArguments:
    """A table of training sets against test sets, from earlier evaluations."""

    matrix: list[str] = field(
        default_factory=list,
        metadata={"help": "Print a table of these metrics.json files instead; needs no model and no data."},
    )


def main(argv: list[str]) -> None:
    """Prints a table of the metrics of each feature; writes metrics.json and a ranked sheet of the test feature.

    The processes share the images; process 0 does everything else.
    """
    if "--matrix" in argv and not HELP & set(argv):
        return on_main(print_matrix, *parse((EvaluateArguments, MatrixArguments), argv, "evaluate"))
    shared = (DataArguments, EvaluateArguments, EmbeddingArguments, MethodArguments, OnnxArguments, MatrixArguments)
    parsed = parse((EvaluatedModel, *shared), argv, "evaluate")
    model_args, data_args, args, embedding_args, method_args, onnx_args, _ = parsed
    check_onnx_options(onnx_args, [model_args.model, *model_args.compare, *model_args.verify_with])
    if args.plots:
        figure_class()
    changed = {*method_args.given(), *(["flip_test"] if embedding_args.flip_test else [])} - {"test_feature"}
    if args.verify_top and changed:
        settings, what = ", ".join(sorted(changed)), "calibration" if model_args.verify_with else "fusion"
        raise UserError(f"verify_top: the {what} holds for the settings of the training: leave out {settings}")
    if model_args.verify_with and not args.verify_top:
        raise UserError("verify_with: orders the nearest images of verify_top: add --verify_top, or leave it out")
    on_main(check_outputs, args, inputs=[*filter(None, (model_args.model, data_args.data_dir))])
    of_a_model = os.path.isfile(Path(args.output_dir) / "config.json")
    if of_a_model and _place(args.output_dir) != _place(str(model_args.model)):
        raise UserError(f"output_dir {args.output_dir}: holds another model and its reports: give another folder")
    data_args.refuse_inside(args.output_dir)
    if args.splits > 1:
        return evaluate_splits(model_args, method_args, onnx_args, data_args, embedding_args, args)
    notes: list[str] = []
    dataset = load_reid_dataset(data_args.dataset, notes=notes, **data_args.options())
    seen = "a model that was trained on this train split has seen them"
    notes += [f"warning: {line}: {seen}" for line in shared_people_lines(dataset)]
    on_main(print, "".join(f"{note}\n" for note in notes), end="")
    for name in filter(None, (model_args.model, *model_args.compare)):
        on_main(warn_about_people, name, dataset)
    if "query" not in dataset or "gallery" not in dataset:
        raise UserError(f"data set {data_args.dataset}: has {', '.join(dataset)}: evaluation needs query and gallery")
    model, processor = load_embedder(model_args, method_args.given(), onnx_args)
    print_onnx(model)
    odds: PairOdds | None = None
    if model_args.verify_with:
        odds = pair_odds_of(model.config, str(model_args.model), model_args.revision)
    elif args.verify_top:
        odds = fusion_of(model, str(model_args.model), model_args.revision)
    further = [further_model(model_args.other(name), onnx_args) for name in model_args.verify_with]
    metadata: dict[str, Any] = {"model": model_args.model_name, "dataset": data_args.dataset}
    options = asdict(embedding_args)
    others = {
        name: compared_metrics(model_args.other(name), onnx_args, dataset, args, **options)
        for name in model_args.compare
    }
    evaluate_and_report(model, processor, dataset, args, metadata, others=others, odds=odds, further=further, **options)


def warn_about_people(model: str, dataset: DatasetDict) -> None:
    """Prints which test people of own data a model was trained on, by the record of its training if it is there."""
    record = Path(model) / "run.json"
    tested = {name: dataset[name] for name in ("query", "gallery") if name in dataset}
    if record.is_file() and (people := people_seen(tested, read_json(record, RunFile).people)):
        count = "1 person" if len(people) == 1 else f"{len(people):,} people"
        print(
            f"warning: {model}: was trained on {count} of this test ({join_names(people)}): its result is not that of "
            "unseen people"
        )


def check_outputs(args: EvaluateArguments, *, inputs: Sequence[str] = ()) -> None:
    """Raises UserError if a result would replace an input or a file that this package did not write."""
    names = ["metrics.json"]
    if args.splits == 1:
        names += ["sheet.png", *(["curves.png", "worst.png"] if args.plots else [])]
        names += ["roc.png"] if args.plots and args.verification else []
    for name in names:
        check_output(Path(args.output_dir) / name, inputs=inputs)


def evaluate_splits(
    model_args: EvaluatedModel,
    method_args: MethodArguments,
    onnx_args: OnnxArguments,
    data_args: DataArguments,
    embedding_args: EmbeddingArguments,
    args: EvaluateArguments,
) -> None:
    """Prints and writes the mean and the standard deviation of the metrics over random splits."""
    reader = READERS.get(data_args.dataset)
    if reader is None or "split" not in inspect.signature(reader).parameters or data_args.split is not None:
        raise UserError("splits: only for viper, prid, grid and ilids, without split: leave it out")
    # Fails early if the last split does not exist.
    load_reid_dataset(data_args.dataset, **{**data_args.options(), "split": args.splits - 1})
    model, processor = load_embedder(model_args, method_args.given(), onnx_args)
    print_onnx(model)
    split_metrics: list[dict[str, dict[str, Any]]] = []
    for split in range(args.splits):
        dataset = load_reid_dataset(data_args.dataset, **{**data_args.options(), "split": split})
        features = protocol_features(model, processor, dataset, **args.protocol(), **asdict(embedding_args))
        metrics = on_main(metrics_by_feature, features.query, features.gallery, features.rule)
        split_metrics.append({name: values.to_dict() for name, values in metrics.items()})
    metadata = {"model": model_args.model_name, "dataset": data_args.dataset, "splits": args.splits}
    on_main(report_splits, split_metrics, args, metadata)


def print_matrix(args: EvaluateArguments, matrix_args: MatrixArguments) -> None:
    """Prints the table of training sets against test sets and writes it as JSON."""
    path = Path(args.output_dir) / "matrix.json"
    check_output(path, inputs=matrix_args.matrix)
    matrix = data_set_matrix(matrix_args.matrix)
    write_json(path, matrix.to_dict())
    print(f"{matrix.format()}\nmatrix: {path}")


def compared_metrics(
    model_args: ModelArguments, onnx_args: OnnxArguments, dataset: DatasetDict, args: EvaluateArguments, **options: Any
) -> RetrievalMetrics:
    """Returns the metrics of another model with its own test feature on the same images."""
    model, processor = load_other(model_args, onnx_args)
    features = protocol_features(model, processor, dataset, **args.protocol(), **options)
    return on_main(metrics_by_feature, features.query, features.gallery, features.rule)[model.config.test_feature]


def load_other(model_args: ModelArguments, onnx_args: OnnxArguments) -> Loaded:
    """Loads another model than the evaluated one, with its own configuration fields, and its processor."""
    model, processor = load_embedder(model_args, onnx=onnx_args)
    print_onnx(model)
    return model, processor


def further_model(model_args: ModelArguments, onnx_args: OnnxArguments) -> FurtherModel:
    """Returns a model of `verify_with`, not loaded yet. Raises UserError if it gives no log odds, before the work."""
    name = model_args.model
    config = load_config(model_args, {}) if find_onnx(name) is None else OnnxConfig(trained_on=[])
    odds = pair_odds_of(config, name, model_args.revision)
    return FurtherModel(model_args.model_name, odds, partial(load_other, model_args, onnx_args))
