"""`evaluate`: a model's mAP, CMC and mINP on the query and gallery parts of a data set."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..data import load_reid_dataset
from ..errors import UserError
from ..evaluation import format_table, write_json
from ..evaluation.protocol import draw_examples, embed_parts, histogram_row, metrics_of_features
from .arguments import DataArguments, EmbeddingArguments, MethodArguments, ModelArguments
from .loading import load_model
from .options import parse


@dataclass
class EvaluateArguments:
    """What is written, and where."""

    output_dir: str = field(metadata={"help": "Folder for metrics.json and sheet.png."})
    histogram: bool = field(default=False, metadata={"help": "Add the row of the colour histogram, the baseline."})


def main(argv: list[str]) -> None:
    """Prints a row for each test feature; writes the metrics as JSON and a ranked sheet of the configured feature."""
    groups = (ModelArguments, MethodArguments, DataArguments, EmbeddingArguments, EvaluateArguments)
    model_args, method_args, data_args, embedding_args, args = parse(groups, argv, "evaluate")
    dataset = load_reid_dataset(data_args.dataset, **data_args.options())
    if "query" not in dataset or "gallery" not in dataset:
        raise UserError(f"data set {data_args.dataset}: has {', '.join(dataset)}: evaluation needs query and gallery")
    query, gallery = dataset["query"], dataset["gallery"]
    model, processor = load_model(**asdict(model_args), fields=method_args.given())

    query_features, gallery_features = embed_parts(model, processor, query, gallery, **asdict(embedding_args))
    metrics = metrics_of_features(query_features, gallery_features, query, gallery)
    if args.histogram:
        metrics["histogram"] = histogram_row(query, gallery)

    feature = model.config.test_feature
    folder = Path(args.output_dir)
    report = {
        "model": model_args.model,
        "dataset": data_args.dataset,
        "query_images": len(query),
        "gallery_images": len(gallery),
        "height": processor.height,
        "width": processor.width,
        "dtype": model_args.dtype,
        "test_feature": feature,
        "metrics": {name: row.to_dict() for name, row in metrics.items()},
    }
    write_json(folder / "metrics.json", report)
    title = f"{data_args.dataset}: nearest gallery images by the feature {feature!r}"
    examples = (query_features[feature], gallery_features[feature], query, gallery)
    draw_examples(folder / "sheet.png", *examples, title=title)
    print(format_table(list(metrics.items())))
    print(f"metrics: {folder / 'metrics.json'}\nranked sheet: {folder / 'sheet.png'}")
