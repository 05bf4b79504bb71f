"""`evaluate`: a model's mAP, CMC and mINP on the query and gallery parts of a data set."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ..data import load_reid_dataset
from ..errors import UserError
from ..evaluation import format_table, write_json
from ..evaluation.protocol import draw_examples, embed_parts, histogram_row, metrics_of_features
from ..model import MllmReIDModel, MllmReIDProcessor
from .arguments import DataArguments, EmbeddingArguments, MethodArguments, ModelArguments
from .loading import load_model, to_device
from .options import parse


@dataclass
class EvaluateArguments:
    """What is written, and where."""

    output_dir: str = field(default="runs/evaluate", metadata={"help": "Folder for metrics.json and sheet.png."})
    histogram: bool = field(default=False, metadata={"help": "Add the row of the colour histogram, the baseline."})


def main(argv: list[str]) -> None:
    """Prints a row for each test feature; writes the metrics as JSON and a ranked sheet of the configured feature."""
    groups = (ModelArguments, MethodArguments, DataArguments, EmbeddingArguments, EvaluateArguments)
    model_args, method_args, data_args, embedding_args, args = parse(groups, argv, "evaluate")
    dataset = load_reid_dataset(data_args.dataset, **data_args.options())
    if "query" not in dataset or "gallery" not in dataset:
        raise UserError(f"data set {data_args.dataset}: has {', '.join(dataset)}: evaluation needs query and gallery")
    model, processor = load_model(model_args, method_args.given())
    to_device(model)
    facts = {"model": model_args.model, "dataset": data_args.dataset}
    options = asdict(embedding_args)
    evaluate_and_report(model, processor, dataset, args.output_dir, facts, histogram=args.histogram, **options)


def evaluate_and_report(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    dataset: DatasetDict,
    output_dir: str,
    facts: dict[str, str],
    *,
    histogram: bool = False,
    **options: Any,
) -> None:
    """Evaluates on `query` and `gallery`: a table on the screen, metrics.json and sheet.png in `output_dir`.

    facts: what metrics.json says of the run. histogram: the baseline's row too. options: those of `embed_images`.
    """
    query, gallery = dataset["query"], dataset["gallery"]
    query_features, gallery_features = embed_parts(model, processor, query, gallery, **options)
    metrics = metrics_of_features(query_features, gallery_features, query, gallery)
    if histogram:
        metrics["histogram"] = histogram_row(query, gallery)
    feature = model.config.test_feature
    report = {
        **facts,
        "query_images": len(query),
        "gallery_images": len(gallery),
        "height": processor.height,
        "width": processor.width,
        "dtype": str(model.dtype).removeprefix("torch."),
        "test_feature": feature,
        "metrics": {name: row.to_dict() for name, row in metrics.items()},
    }
    folder = Path(output_dir)
    title = f"{facts['dataset']}: nearest gallery images by the feature {feature!r}"
    examples = (query_features[feature], gallery_features[feature], query, gallery)
    draw_examples(folder / "sheet.png", *examples, title=title)
    write_json(folder / "metrics.json", report)
    print(format_table(list(metrics.items())))
    print(f"metrics: {folder / 'metrics.json'}\nranked sheet: {folder / 'sheet.png'}")
