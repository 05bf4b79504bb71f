"""`evaluate`: a model's metrics on the query and gallery parts of a data set, compared, broken down and drawn."""

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ..data.leakage import shared_people_lines
from ..data.load import load_reid_dataset
from ..data.readers import READERS
from ..evaluation.metrics import RetrievalMetrics
from ..evaluation.plots import figure_class
from ..evaluation.protocol import (
    metrics_by_feature,
    protocol_features,
)
from ..evaluation.report import (
    data_set_matrix,
    write_json,
)
from ..evaluation.run import EvaluateArguments, evaluate_and_report, report_splits
from ..options.arguments import DataArguments, EmbeddingArguments, MethodArguments, ModelArguments
from ..options.parser import parse
from ..training.loading import load_encoder, to_device
from ..utils.errors import UserError
from ..utils.outputs import check_output
from ..utils.processes import on_main


@dataclass
class EvaluatedModel(ModelArguments):
    """Which model, in which number format, and what it is compared with."""

    model: str | None = field(default=None, metadata={"help": "A checkpoint of ours, or a native LLaVA."})  # type: ignore[assignment]
    compare: list[str] = field(
        default_factory=list,
        metadata={"help": "Checkpoints to compare with the model (without --model: with the first of them)."},
    )

    def __post_init__(self) -> None:
        if self.model is None and self.compare:
            self.model, *self.compare = self.compare
        if self.model is None:
            raise ValueError("model is not given: add --model, or --compare with two checkpoints")


@dataclass
class MatrixArguments:
    """Instead of evaluating: the table of training sets against test sets from earlier evaluations."""

    matrix: list[str] = field(
        default_factory=list, metadata={"help": "metrics.json files to put into one table; needs no model, no data."}
    )


def main(argv: list[str]) -> None:
    """Prints a row for each test feature; writes the metrics as JSON and a ranked sheet of the configured feature.

    Processes share the images; process 0 does all else.
    """
    if "--matrix" in argv and not {"-h", "--help"} & set(argv):
        return on_main(print_matrix, *parse((EvaluateArguments, MatrixArguments), argv, "evaluate"))
    groups = (EvaluatedModel, MethodArguments, DataArguments, EmbeddingArguments, EvaluateArguments, MatrixArguments)
    model_args, method_args, data_args, embedding_args, args, _ = parse(groups, argv, "evaluate")
    if args.plots:
        figure_class()
    on_main(check_outputs, args, inputs=[*filter(None, (model_args.model, data_args.data_dir))])
    data_args.refuse_inside(args.output_dir)
    if args.splits > 1:
        return evaluate_splits(model_args, method_args, data_args, embedding_args, args)
    notes: list[str] = []
    dataset = load_reid_dataset(data_args.dataset, notes=notes, **data_args.options())
    seen = "a model that was trained on this train part has seen them"
    notes += [f"warning: {line}: {seen}" for line in shared_people_lines(dataset)]
    on_main(print, "".join(f"{note}\n" for note in notes), end="")
    if "query" not in dataset or "gallery" not in dataset:
        raise UserError(f"data set {data_args.dataset}: has {', '.join(dataset)}: evaluation needs query and gallery")
    model, processor = load_encoder(model_args, method_args.given())
    to_device(model)
    metadata = {"model": model_args.model, "dataset": data_args.dataset}
    options = asdict(embedding_args)
    others = {
        name: compared_metrics(replace(model_args, model=name, compare=[]), dataset, args, **options)
        for name in model_args.compare
    }
    evaluate_and_report(model, processor, dataset, args, metadata, others=others, **options)


def check_outputs(args: EvaluateArguments, *, inputs: Sequence[str] = ()) -> None:
    """Raises UserError, before the work, where a result would replace what is not ours. inputs: what is read."""
    names = ["metrics.json"]
    if args.splits == 1:
        names += ["sheet.png", *(["curves.png", "worst.png"] if args.plots else [])]
        names += ["roc.png"] if args.plots and args.verification else []
    for name in names:
        check_output(Path(args.output_dir) / name, inputs=inputs)


def evaluate_splits(
    model_args: EvaluatedModel,
    method_args: MethodArguments,
    data_args: DataArguments,
    embedding_args: EmbeddingArguments,
    args: EvaluateArguments,
) -> None:
    """Prints and writes the mean and the standard deviation of each feature's metrics over random splits."""
    reader = READERS.get(data_args.dataset)
    if reader is None or "split" not in inspect.signature(reader).parameters or data_args.split is not None:
        raise UserError("splits: only for viper, prid, grid and ilids, without split: leave it out")
    # One that is not there is told before the long work.
    load_reid_dataset(data_args.dataset, **{**data_args.options(), "split": args.splits - 1})
    model, processor = load_encoder(model_args, method_args.given())
    to_device(model)
    of_splits: list[dict[str, dict[str, Any]]] = []
    for split in range(args.splits):
        dataset = load_reid_dataset(data_args.dataset, **{**data_args.options(), "split": split})
        features = protocol_features(model, processor, dataset, **args.protocol(), **asdict(embedding_args))
        rows = on_main(metrics_by_feature, features.query, features.gallery, features.rule)
        of_splits.append({name: row.to_dict() for name, row in rows.items()})
    metadata = {"model": model_args.model, "dataset": data_args.dataset, "splits": args.splits}
    on_main(report_splits, of_splits, args, metadata)


def print_matrix(args: EvaluateArguments, matrix_args: MatrixArguments) -> None:
    """Prints the matrix of the given reports and writes it as JSON."""
    path = Path(args.output_dir) / "matrix.json"
    check_output(path, inputs=matrix_args.matrix)
    matrix = data_set_matrix(matrix_args.matrix)
    write_json(path, matrix.to_dict())
    print(f"{matrix.format()}\nmatrix: {path}")


def compared_metrics(
    model_args: ModelArguments, dataset: DatasetDict, args: EvaluateArguments, **options: Any
) -> RetrievalMetrics:
    """The metrics of another model's own test feature on the same parts."""
    model, processor = load_encoder(model_args)
    to_device(model)
    features = protocol_features(model, processor, dataset, **args.protocol(), **options)
    return on_main(metrics_by_feature, features.query, features.gallery, features.rule)[model.config.test_feature]
