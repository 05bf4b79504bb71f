"""`evaluate`: a model's metrics on the query and gallery parts of a data set, compared, broken down and drawn."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ..data import load_reid_dataset
from ..data.columns import cameras_called, shown
from ..data.leaks import overlaps, shared_people_lines
from ..data.published import published_counts
from ..data.readers import READERS
from ..errors import UserError
from ..evaluation import RetrievalMetrics, format_table, metrics_from_blocks, write_json
from ..evaluation.breakdown import by_camera, data_set_matrix, worst_queries
from ..evaluation.open_set import OpenSetMetrics, open_set_from_blocks
from ..evaluation.parts import PartsFeatures, features_of_parts
from ..evaluation.plots import draw_curves, draw_roc, figure_class
from ..evaluation.protocol import (
    draw_queries,
    evenly_spread,
    histogram_row,
    metrics_of_features,
)
from ..evaluation.report import align
from ..evaluation.single_shot import single_shot_cmc
from ..evaluation.statistics import Interval, PairedDifference, compare, confidence_intervals
from ..evaluation.text_queries import TEXT_FEATURE, caption_queries, embed_captions, image_and_text, text_to_image
from ..evaluation.verification import VerificationMetrics, verification_from_blocks
from ..evaluation.weights import weights_digest
from ..model import ImageEncoder, ImageEncoderProcessor, MllmReIDModel, MllmReIDProcessor
from ..model.quantization import quantized_as
from ..outputs import check_output
from ..processes import on_main
from ..ranges import Count
from ..retrieval import Ranking, distance_blocks, expand_queries, rank_gallery, rerank_blocks
from .arguments import DataArguments, EmbeddingArguments, MethodArguments, ModelArguments
from .loading import load_encoder, to_device
from .options import parse


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
class EvaluateArguments:
    """What is computed besides each feature's metrics, and where everything is written."""

    output_dir: str = field(default="runs/evaluate", metadata={"help": "Folder for metrics.json and the pictures."})
    histogram: bool = field(default=False, metadata={"help": "Add the row of the colour histogram, the baseline."})
    exclude: list[str] = field(
        default_factory=lambda: ["camera_id"],
        metadata={"help": "Drops gallery images of the query's person that share one of these: camera_id, clothes_id."},
    )
    pool_tracks: bool = field(
        default=False, metadata={"help": "Average the images of a track, column track_id, to one query or gallery row."}
    )
    splits: Count = field(
        default=1, metadata={"help": "viper, prid, grid, ilids: average over so many of the ten (or a file's) splits."}
    )
    rerank: bool = field(
        default=False, metadata={"help": "Add the row of k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3)."}
    )
    expand: bool = field(default=False, metadata={"help": "Add the row of alpha query expansion (k 10, alpha 3)."})
    single_shot: bool = field(
        default=False,
        metadata={"help": "CMC with one gallery image of each person drawn at random, the classic CUHK03 protocol."},
    )
    text_queries: bool = field(
        default=False, metadata={"help": "Add rows of captions as queries, alone and with their images."}
    )
    verification: bool = field(
        default=False, metadata={"help": "Verification over all pairs (ROC, EER, TPR at FPR) and open-set search."}
    )
    plots: bool = field(
        default=False, metadata={"help": "Draw the curves and the worst queries; needs the extra `plots`."}
    )

    def __post_init__(self) -> None:
        unknown = sorted(set(self.exclude) - {"camera_id", "clothes_id"})
        if unknown:
            raise ValueError(f"exclude: unknown column {unknown[0]!r}: use camera_id, clothes_id or both")
        if self.splits < 1:
            raise ValueError(f"splits {self.splits}: give 1 or more")

    def protocol(self) -> dict[str, Any]:
        """What `features_of_parts` takes of these."""
        return {"exclude": self.exclude, "pool_tracks": self.pool_tracks}


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
    facts = {"model": model_args.model, "dataset": data_args.dataset}
    options = asdict(embedding_args)
    others = {
        name: result_of_another(replace(model_args, model=name, compare=[]), dataset, args, **options)
        for name in model_args.compare
    }
    evaluate_and_report(model, processor, dataset, args, facts, others=others, **options)


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
        features = features_of_parts(model, processor, dataset, **args.protocol(), **asdict(embedding_args))
        rows = on_main(metrics_of_features, features.query, features.gallery, features.rule)
        of_splits.append({name: row.to_dict() for name, row in rows.items()})
    facts = {"model": model_args.model, "dataset": data_args.dataset, "splits": args.splits}
    on_main(report_splits, of_splits, args, facts)


def report_splits(of_splits: Sequence[dict[str, dict[str, Any]]], args: EvaluateArguments, facts: dict) -> None:
    """The table and the JSON of the metrics of each split, by feature. facts: what metrics.json says of the run."""
    means = {
        name: {key: _mean_and_deviation([split[name][key] for split in of_splits]) for key in of_splits[0][name]}
        for name in of_splits[0]
    }
    shown = ("mAP", "rank1", "rank5", "rank10", "mINP")
    lines = [["", *shown]]
    for name, row in means.items():
        lines.append([name, *(f"{100 * row[key][0]:.1f} +- {100 * row[key][1]:.1f}" for key in shown)])
    print(f"{align(lines)}\nIn percent, mean and standard deviation over {args.splits} random splits.")
    path = Path(args.output_dir) / "metrics.json"
    report = {name: {key: {"mean": m, "deviation": d} for key, (m, d) in row.items()} for name, row in means.items()}
    write_json(path, {**facts, "metrics_over_splits": report, "metrics_of_splits": of_splits})
    print(f"metrics: {path}")


def _mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """The mean and the sample standard deviation."""
    return float(np.mean(values)), float(np.std(values, ddof=1))


def print_matrix(args: EvaluateArguments, matrix_args: MatrixArguments) -> None:
    """Prints the matrix of the given reports and writes it as JSON."""
    path = Path(args.output_dir) / "matrix.json"
    check_output(path, inputs=matrix_args.matrix)
    matrix = data_set_matrix(matrix_args.matrix)
    write_json(path, matrix.to_dict())
    print(f"{matrix.format()}\nmatrix: {path}")


def result_of_another(
    model_args: ModelArguments, dataset: DatasetDict, args: EvaluateArguments, **options: Any
) -> RetrievalMetrics:
    """The metrics of another model's own test feature on the same parts."""
    model, processor = load_encoder(model_args)
    to_device(model)
    features = features_of_parts(model, processor, dataset, **args.protocol(), **options)
    return on_main(metrics_of_features, features.query, features.gallery, features.rule)[model.config.test_feature]


def evaluate_and_report(
    model: ImageEncoder,
    processor: ImageEncoderProcessor,
    dataset: DatasetDict,
    args: EvaluateArguments,
    facts: Mapping[str, str],
    *,
    others: Mapping[str, RetrievalMetrics] | None = None,
    **options: Any,
) -> None:
    """Evaluates on `query` and `gallery`: tables on the screen, metrics.json and pictures in `args.output_dir`.

    facts: what metrics.json says of the run. others: the results of the models to compare with, on the same queries.
    options: those of `embed_images`. Processes share the images and captions; process 0 does all else.
    """
    features = features_of_parts(model, processor, dataset, **args.protocol(), **options)
    texts = features_of_captions(model, processor, features.query_rows) if args.text_queries else None
    facts_of_run = {**facts, "flip_test": bool(options.get("flip_test"))}
    on_main(report_metrics, model, processor, features, texts, args, facts_of_run, others or {})


def report_metrics(
    model: ImageEncoder,
    processor: ImageEncoderProcessor,
    features: PartsFeatures,
    texts: np.ndarray | None,
    args: EvaluateArguments,
    facts: Mapping[str, Any],
    others: Mapping[str, RetrievalMetrics],
) -> None:
    """What `evaluate_and_report` prints, writes and draws of these features. texts: (C, D) of the queries' captions."""
    query, gallery, rule = features.query_rows, features.gallery_rows, features.rule
    persons, people = query["person_id"][:], {}
    feature = model.config.test_feature
    rows = metrics_of_features(features.query, features.gallery, rule)
    ours = (features.query[feature], features.gallery[feature])
    if args.rerank:
        rows[f"{feature}, re-ranked"] = metrics_from_blocks(rerank_blocks(*ours), rule)
    if args.expand:
        expanded = expand_queries(*ours)
        rows[f"{feature}, expanded"] = metrics_from_blocks(distance_blocks(expanded, ours[1]), rule)
    if texts is not None:
        if not model.config.reid_text:
            lies_apart = "this model was trained without reid_text: captions and images lie apart, expect chance"
            print(f"text queries: {lies_apart}")
        found, caption_people = rows_of_captions(texts, features)
        rows |= found
        people = dict.fromkeys(found, caption_people)
    if args.histogram:
        rows["histogram"] = histogram_row(query, gallery, rule)
    intervals = {name: intervals_over_people(row, people.get(name, persons)) for name, row in rows.items()}
    cameras = by_camera(rows[feature], query["camera_id"][:])
    called = cameras_called(query)
    report: dict[str, Any] = {
        **facts,
        "weights": weights_digest(facts["model"]),
        "trained_on": model.config.trained_on or [],
        "tested_on": sorted(set(query["source"][:])),
        "published_counts": published_counts({"query": query, "gallery": gallery}),
        "overlap": overlaps(model.config.trained_on or [], query["source"]),
        "query_images": len(query),
        "gallery_images": len(gallery),
        "height": processor.height,
        "width": processor.width,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantize": quantized_as(model),
        "exclude": args.exclude,
        "pool_tracks": args.pool_tracks,
        "test_feature": feature,
        "metrics": {name: row.to_dict() for name, row in rows.items()},
        "intervals": {name: {key: i.to_dict() for key, i in row.items()} for name, row in intervals.items()},
        "by_query_camera": {called[camera] or str(camera): row.to_dict() for camera, row in cameras.items()},
    }
    folder = Path(args.output_dir)
    for overlap in report["overlap"]:
        print(f"warning: {overlap}: this result is not that of unseen people")
    print(format_table(list(rows.items()), intervals))
    if len(cameras) > 1:
        by_name = [(shown(called[camera]) or "unknown", row) for camera, row in cameras.items()]
        print(f"\nby query camera, {feature}:\n{format_table(by_name)}")
    if args.single_shot:
        drawn = single_shot_cmc(distance_blocks(*ours), rule)
        report["single_shot_cmc"] = {f"rank{rank}": share for rank, share in drawn.items()}
        shares = ", ".join(f"Rank-{rank} {100 * share:.1f}" for rank, share in drawn.items())
        print(f"\nsingle gallery shot, 10 draws for each query, {feature}: {shares}")
    if args.verification:
        pairs = verification_from_blocks(distance_blocks(*ours), rule)
        searches = open_set_from_blocks(distance_blocks(*ours), rule)
        report |= {"verification": pairs.to_dict(), "open_set": searches.to_dict()}
        print(f"\n{verification_lines(pairs, searches)}")
    for name, other in others.items():
        differences = compare(rows[feature], other, persons)
        report.setdefault("compare", {})[name] = {key: d.to_dict() for key, d in differences.items()}
        print(f"\n{facts['model']} less {name}, same queries:\n{difference_lines(differences)}")

    write_json(folder / "metrics.json", report)
    ranking = rank_gallery(*ours, 10, same_person=rule)
    # The sets' own names: a reader's name is only that of a layout.
    tested_on = " + ".join(report["tested_on"])
    title = f"{tested_on}: nearest gallery images by the feature {feature!r}"
    draw_queries(folder / "sheet.png", ranking, evenly_spread(len(query)), query, gallery, title=title)
    pictures = ["sheet.png"]
    if args.plots:
        draw_curves(folder / "curves.png", rows, title=f"{tested_on}: {facts['model']}")
        draw_worst(folder / "worst.png", rows[feature], ranking, query, gallery, f"Worst queries by {feature!r}")
        pictures += ["curves.png", "worst.png"]
    if args.plots and args.verification:
        title = f"{tested_on}, feature {feature!r}"
        draw_roc(folder / "roc.png", {f"EER {pairs.eer:.1%}": pairs.roc}, title=title)
        pictures.append("roc.png")
    print(f"metrics: {folder / 'metrics.json'}\npictures: {', '.join(str(folder / name) for name in pictures)}")


def intervals_over_people(metrics: RetrievalMetrics, persons: Sequence[int] | np.ndarray) -> dict[str, Interval]:
    """The intervals of a result; none where all queries with a match are of one person."""
    valid = np.asarray(persons)[~np.isnan(metrics.average_precision)]
    return confidence_intervals(metrics, persons) if len(np.unique(valid)) > 1 else {}


def features_of_captions(model: ImageEncoder, processor: ImageEncoderProcessor, query: Dataset) -> np.ndarray:
    """The latents of every caption of a query part, (C, D), on process 0. Raises UserError where there are none."""
    captions, _ = caption_queries(query)
    if not captions:
        raise UserError("text_queries: the query part has no captions: give captions_file, or leave text_queries out")
    if not isinstance(model, MllmReIDModel) or not isinstance(processor, MllmReIDProcessor):
        raise UserError("text_queries: a vision form reads no text: give the checkpoint it was exported from")
    return embed_captions(model, processor, captions)


def rows_of_captions(texts: np.ndarray, features: PartsFeatures) -> tuple[dict[str, RetrievalMetrics], np.ndarray]:
    """The rows of captions (C, D) as queries, alone and with their images, and the person of each caption (C,)."""
    _, of_row = caption_queries(features.query_rows)
    parts = (features.gallery[TEXT_FEATURE], features.query_rows, features.gallery_rows)
    rows = {
        "text": text_to_image(texts, of_row, *parts),
        "image and text": image_and_text(texts, of_row, features.query[TEXT_FEATURE], *parts),
    }
    return rows, np.asarray(features.query_rows["person_id"][:])[of_row]


def verification_lines(pairs: VerificationMetrics, searches: OpenSetMetrics) -> str:
    """Verification and open-set search in two lines; "-" for a rate that so few pairs or searches cannot measure."""
    percent = {True: "-", False: "{:.1%}"}
    tpr = ", ".join(f"TPR {percent[np.isnan(t)].format(t)} at FPR {fpr:g}" for fpr, t in pairs.tpr.items())
    tpir = ", ".join(f"TPIR {percent[np.isnan(t)].format(t)} at FPIR {rate:g}" for rate, t in searches.tpir.items())
    return (
        f"verification over {pairs.num_genuine:,} genuine and {pairs.num_impostor:,} impostor pairs: "
        f"EER {pairs.eer:.1%}, {tpr}\nopen-set search: {tpir}"
    )


def draw_worst(
    path: Path, metrics: RetrievalMetrics, ranking: Ranking, query: Dataset, gallery: Dataset, title: str
) -> None:
    """The queries of lowest average precision, with it and the number of their matches as captions."""
    worst = worst_queries(metrics, 8)
    titles = [f"AP {metrics.average_precision[row]:.0%}, {len(metrics.match_ranks[row])} matches" for row in worst]
    draw_queries(path, ranking, worst, query, gallery, titles=titles, title=title)


def difference_lines(differences: Mapping[str, PairedDifference]) -> str:
    """The difference of each metric in percentage points, with its interval and p-value."""
    return "\n".join(
        f"  {name:7} {100 * d.difference:+6.1f} [{100 * d.low:+.1f}, {100 * d.high:+.1f}]  "
        + (f"p = {d.p_value:.4f}" if d.p_value >= 1e-4 else "p < 0.0001")
        for name, d in differences.items()
    )
