"""Evaluation of a model on a data set: metrics of every feature, comparisons, tables, JSON and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ..data.contract import display_name, names_by_camera
from ..data.leakage import overlaps
from ..data.published import published_counts
from ..model import ImageEncoder, ImageEncoderProcessor, MllmReIDModel, MllmReIDProcessor
from ..model.adapters import quantized_as
from ..retrieval.distances import distance_blocks
from ..retrieval.ranking import Ranking, rank_gallery
from ..retrieval.reranking import expand_queries, rerank_blocks
from ..utils.errors import UserError
from ..utils.processes import on_main
from ..utils.ranges import Count
from .metrics import RetrievalMetrics, metrics_from_blocks, single_shot_cmc
from .plots import draw_curves, draw_roc
from .protocol import (
    ProtocolFeatures,
    draw_queries,
    evenly_spaced,
    histogram_metrics,
    metrics_by_feature,
    protocol_features,
)
from .report import align, by_camera, format_table, weights_digest, worst_queries, write_json
from .statistics import Interval, PairedDifference, compare, confidence_intervals
from .text_queries import TEXT_FEATURE, caption_queries, embed_captions, image_and_text, text_to_image
from .verification import OpenSetMetrics, VerificationMetrics, open_set_from_blocks, verification_from_blocks


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
        """What `protocol_features` takes of these."""
        return {"exclude": self.exclude, "pool_tracks": self.pool_tracks}


def evaluate_and_report(
    model: ImageEncoder,
    processor: ImageEncoderProcessor,
    dataset: DatasetDict,
    args: EvaluateArguments,
    metadata: Mapping[str, str],
    *,
    others: Mapping[str, RetrievalMetrics] | None = None,
    **options: Any,
) -> None:
    """Evaluates on `query` and `gallery`: tables on the screen, metrics.json and pictures in `args.output_dir`.

    metadata: what metrics.json says of the run. others: the results of the models to compare with, on the same queries.
    options: those of `embed_images`. Processes share the images and captions; process 0 does all else.
    """
    features = protocol_features(model, processor, dataset, **args.protocol(), **options)
    texts = caption_features(model, processor, features.query_split) if args.text_queries else None
    run_metadata = {**metadata, "flip_test": bool(options.get("flip_test"))}
    on_main(report_metrics, model, processor, features, texts, args, run_metadata, others or {})


def report_metrics(
    model: ImageEncoder,
    processor: ImageEncoderProcessor,
    features: ProtocolFeatures,
    texts: np.ndarray | None,
    args: EvaluateArguments,
    metadata: Mapping[str, Any],
    others: Mapping[str, RetrievalMetrics],
) -> None:
    """What `evaluate_and_report` prints, writes and draws of these features. texts: (C, D) of the queries' captions."""
    query, gallery, rule = features.query_split, features.gallery_split, features.rule
    persons, people = query["person_id"][:], {}
    feature = model.config.test_feature
    rows = metrics_by_feature(features.query, features.gallery, rule)
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
        found, caption_people = caption_metrics(texts, features)
        rows |= found
        people = dict.fromkeys(found, caption_people)
    if args.histogram:
        rows["histogram"] = histogram_metrics(query, gallery, rule)
    intervals = {name: people_intervals(row, people.get(name, persons)) for name, row in rows.items()}
    cameras = by_camera(rows[feature], query["camera_id"][:])
    called = names_by_camera(query)
    report: dict[str, Any] = {
        **metadata,
        "weights": weights_digest(metadata["model"]),
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
        by_name = [(display_name(called[camera]) or "unknown", row) for camera, row in cameras.items()]
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
        print(f"\n{metadata['model']} less {name}, same queries:\n{difference_lines(differences)}")

    write_json(folder / "metrics.json", report)
    ranking = rank_gallery(*ours, 10, same_person=rule)
    # The sets' own names: a reader's name is only that of a layout.
    tested_on = " + ".join(report["tested_on"])
    title = f"{tested_on}: nearest gallery images by the feature {feature!r}"
    draw_queries(folder / "sheet.png", ranking, evenly_spaced(len(query)), query, gallery, title=title)
    pictures = ["sheet.png"]
    if args.plots:
        draw_curves(folder / "curves.png", rows, title=f"{tested_on}: {metadata['model']}")
        draw_worst(folder / "worst.png", rows[feature], ranking, query, gallery, f"Worst queries by {feature!r}")
        pictures += ["curves.png", "worst.png"]
    if args.plots and args.verification:
        title = f"{tested_on}, feature {feature!r}"
        draw_roc(folder / "roc.png", {f"EER {pairs.eer:.1%}": pairs.roc}, title=title)
        pictures.append("roc.png")
    print(f"metrics: {folder / 'metrics.json'}\npictures: {', '.join(str(folder / name) for name in pictures)}")


def people_intervals(metrics: RetrievalMetrics, persons: Sequence[int] | np.ndarray) -> dict[str, Interval]:
    """The intervals of a result; none where all queries with a match are of one person."""
    valid = np.asarray(persons)[~np.isnan(metrics.average_precision)]
    return confidence_intervals(metrics, persons) if len(np.unique(valid)) > 1 else {}


def caption_features(model: ImageEncoder, processor: ImageEncoderProcessor, query: Dataset) -> np.ndarray:
    """The latents of every caption of a query part, (C, D), on process 0. Raises UserError where there are none."""
    captions, _ = caption_queries(query)
    if not captions:
        raise UserError("text_queries: the query part has no captions: give captions_file, or leave text_queries out")
    if not isinstance(model, MllmReIDModel) or not isinstance(processor, MllmReIDProcessor):
        raise UserError("text_queries: a vision form reads no text: give the checkpoint it was exported from")
    return embed_captions(model, processor, captions)


def caption_metrics(texts: np.ndarray, features: ProtocolFeatures) -> tuple[dict[str, RetrievalMetrics], np.ndarray]:
    """The rows of captions (C, D) as queries, alone and with their images, and the person of each caption (C,)."""
    _, of_row = caption_queries(features.query_split)
    parts = (features.gallery[TEXT_FEATURE], features.query_split, features.gallery_split)
    rows = {
        "text": text_to_image(texts, of_row, *parts),
        "image and text": image_and_text(texts, of_row, features.query[TEXT_FEATURE], *parts),
    }
    return rows, np.asarray(features.query_split["person_id"][:])[of_row]


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


def report_splits(of_splits: Sequence[dict[str, dict[str, Any]]], args: EvaluateArguments, metadata: dict) -> None:
    """The table and the JSON of the metrics of each split, by feature. metadata: what metrics.json says of the run."""
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
    write_json(path, {**metadata, "metrics_over_splits": report, "metrics_of_splits": of_splits})
    print(f"metrics: {path}")


def _mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """The mean and the sample standard deviation."""
    return float(np.mean(values)), float(np.std(values, ddof=1))
