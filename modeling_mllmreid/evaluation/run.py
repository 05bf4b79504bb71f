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
from ..model import MllmReIDModel, MllmReIDProcessor
from ..model.adapters import quantized_as
from ..model.shipped_models import shipped_folder
from ..retrieval.distances import distance_blocks
from ..retrieval.embeddings import weights_digest
from ..retrieval.exact import Ranking
from ..retrieval.ranking import rank_gallery
from ..retrieval.reranking import expand_queries, rerank_blocks
from ..utils.errors import UserError
from ..utils.outputs import write_json
from ..utils.processes import on_main
from ..utils.ranges import Count, CountOrZero
from .metrics import RetrievalMetrics, metrics_from_blocks, single_shot_cmc
from .onnx_encoder import OnnxEncoder
from .pair_fusion import PairFusion
from .plots import draw_curves, draw_roc
from .protocol import (
    ProtocolFeatures,
    draw_queries,
    evenly_spaced,
    histogram_metrics,
    metrics_by_feature,
    protocol_features,
)
from .report import align, by_camera, difference_lines, format_table, worst_queries
from .several_models import FurtherModel, Judged, PairOdds, judge_shortlist, judged_results, report_judged
from .statistics import Interval, compare, confidence_intervals
from .text_queries import TEXT_FEATURE, caption_queries, embed_captions, image_and_text, text_to_image
from .torch_embedding import Encoder, EncoderProcessor
from .verification import OpenSetMetrics, VerificationMetrics, open_set_from_blocks, verification_from_blocks


@dataclass
class EvaluateArguments:
    """Options of an evaluation, and the folder for its results."""

    output_dir: str = field(default="runs/evaluate", metadata={"help": "Folder for metrics.json and the pictures."})
    histogram: bool = field(default=False, metadata={"help": "Add the colour histogram, a baseline, to the table."})
    exclude: list[str] = field(
        default_factory=lambda: ["camera_id"],
        metadata={
            "help": "Drop gallery images of the query's person that have the same camera_id, clothes_id, or either."
        },
    )
    pool_tracks: bool = field(
        default=False,
        metadata={"help": "Average the images of each track (column track_id) into one feature."},
    )
    splits: Count = field(
        default=1,
        metadata={"help": "viper, prid, grid, ilids: number of the ten (or a file's) random splits to average over."},
    )
    rerank: bool = field(default=False, metadata={"help": "Add k-reciprocal re-ranking (k1 20, k2 6, lambda 0.3)."})
    expand: bool = field(default=False, metadata={"help": "Add alpha query expansion (k 10, alpha 3) to the table."})
    verify_top: CountOrZero = field(
        default=0,
        metadata={"help": "Add the N nearest images in the order of pair scores. 0: off."},
    )
    single_shot: bool = field(
        default=False,
        metadata={"help": "Add the CMC with one random gallery image of each person. The classic CUHK03 protocol."},
    )
    text_queries: bool = field(
        default=False, metadata={"help": "Add captions as queries, alone and with their images."}
    )
    verification: bool = field(
        default=False,
        metadata={"help": "Compute verification over all pairs (ROC, EER, TPR at FPR) and open-set search."},
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
        if self.verify_top == 1:
            raise ValueError("verify_top 1: one image has no other order: give 2 or more, or 0 for none")
        for name, given in (("splits", self.splits > 1), ("pool_tracks", self.pool_tracks)):
            if self.verify_top and given:
                raise ValueError(f"verify_top: compares single images of one split: leave out {name} or verify_top")

    def protocol(self) -> dict[str, Any]:
        """Returns the options for `protocol_features`."""
        return {"exclude": self.exclude, "pool_tracks": self.pool_tracks}


def evaluate_and_report(
    model: Encoder,
    processor: EncoderProcessor,
    dataset: DatasetDict,
    args: EvaluateArguments,
    metadata: Mapping[str, str],
    *,
    others: Mapping[str, RetrievalMetrics] | None = None,
    odds: PairOdds | None = None,
    further: Sequence[FurtherModel] = (),
    **options: Any,
) -> None:
    """Evaluates a model on a data set; prints tables, writes metrics.json and pictures to `args.output_dir`.

    Processes share the images and captions; process 0 does everything else.

    Args:
        model (`Encoder`): the model, in its full or vision form.
        processor (`EncoderProcessor`): its processor.
        dataset (`DatasetDict`): a data set with the splits `query` and `gallery`.
        args (`EvaluateArguments`): what to compute, and where to write it.
        metadata (`Mapping[str, str]`): entries of metrics.json that describe the run; `model` names the checkpoint.
        others (`Mapping[str, RetrievalMetrics]`, *optional*): results of other models on the same queries, by name.
        odds (`PairFusion` or `Calibration`, *optional*): the fusion of the checkpoint, of `fusion_of`, which
            `args.verify_top` needs; with further models a calibration will do, of `pair_odds_of`.
        further (`Sequence[FurtherModel]`, *optional*): models that also judge the shortlist of `args.verify_top`.
        options: options of `embed_images`.

    Raises:
        UserError: if the data set does not fit the options, or an image cannot be opened.
    """
    if args.verify_top and not isinstance(odds, PairOdds if further else PairFusion):
        raise UserError("verify_top: there is no fusion: give that of the checkpoint, or leave it out")

    def embed(model: Encoder, processor: EncoderProcessor) -> ProtocolFeatures:
        return protocol_features(model, processor, dataset, **args.protocol(), **options)

    features = embed(model, processor)
    texts = caption_features(model, processor, features.query_split) if args.text_queries else None
    run_metadata = {**metadata, "flip_test": bool(options.get("flip_test"))}
    judged: list[Judged] = []
    if odds is not None and args.verify_top:
        pair_options = {name: options[name] for name in ("batch_size", "num_workers", "progress") if name in options}
        evaluated = metadata["model"], (model, processor), features, odds
        judged = judge_shortlist(*evaluated, args.verify_top, further, embed, **pair_options)
    on_main(report_metrics, model, processor, features, texts, args, run_metadata, others or {}, judged)


def report_metrics(
    model: Encoder,
    processor: EncoderProcessor,
    features: ProtocolFeatures,
    texts: np.ndarray | None,
    args: EvaluateArguments,
    metadata: Mapping[str, Any],
    others: Mapping[str, RetrievalMetrics],
    judged: Sequence[Judged] = (),
) -> None:
    """Computes, prints, writes and draws the results of these features, on process 0.

    Args:
        model (`Encoder`): the model that computed the features.
        processor (`EncoderProcessor`): its processor.
        features (`ProtocolFeatures`): features and splits of the queries and the gallery.
        texts (`np.ndarray`, *optional*): (C, D) features of the queries' captions.
        args (`EvaluateArguments`): what to compute, and where to write it.
        metadata (`Mapping[str, Any]`): entries of metrics.json that describe the run.
        others (`Mapping[str, RetrievalMetrics]`): results of other models on the same queries, by name.
        judged (`Sequence[Judged]`, *optional*): what each model says about the shortlists; the evaluated one is first.
    """
    feature, folder = model.config.test_feature, Path(args.output_dir)
    results, caption_people = _all_metrics(model, features, texts, args, judged)
    persons = features.query_split["person_id"][:]
    intervals = {name: people_intervals(result, caption_people.get(name, persons)) for name, result in results.items()}
    camera_names = names_by_camera(features.query_split)
    cameras = by_camera(results[feature], features.query_split["camera_id"][:])
    report = {
        **_run_settings(model, processor, features, args, metadata),
        "metrics": {name: result.to_dict() for name, result in results.items()},
        "intervals": {name: {key: i.to_dict() for key, i in values.items()} for name, values in intervals.items()},
        "by_query_camera": {camera_names[camera] or str(camera): r.to_dict() for camera, r in cameras.items()},
    }
    for text in report["overlap"]:
        print(f"warning: {text}: this result is not that of unseen people")
    print(format_table(list(results.items()), intervals))
    if len(cameras) > 1:
        lines = [(display_name(camera_names[camera]) or "unknown", result) for camera, result in cameras.items()]
        print(f"\nby query camera, {feature}:\n{format_table(lines)}")
    verification = _further_protocols(report, features, feature, args)
    report |= report_judged(judged, results, features, feature)
    for name, other in others.items():
        differences = compare(results[feature], other, persons)
        report.setdefault("compare", {})[name] = {key: d.to_dict() for key, d in differences.items()}
        print(f"\n{metadata['model']} less {name}, same queries:\n{difference_lines(differences)}")
    write_json(folder / "metrics.json", report)
    # The data sets' own names: a reader's name is only that of a layout.
    tested_on = " + ".join(report["tested_on"])
    pictures = _draw_pictures(folder, features, feature, results, args, tested_on, metadata["model"], verification)
    print(f"metrics: {folder / 'metrics.json'}\npictures: {', '.join(str(folder / name) for name in pictures)}")


def _all_metrics(
    model: Encoder,
    features: ProtocolFeatures,
    texts: np.ndarray | None,
    args: EvaluateArguments,
    judged: Sequence[Judged],
) -> tuple[dict[str, RetrievalMetrics], dict[str, np.ndarray]]:
    """Computes all results by name, and the person of each query for those whose queries are captions."""
    feature, rule = model.config.test_feature, features.rule
    query, gallery = features.query[feature], features.gallery[feature]
    results, caption_people = metrics_by_feature(features.query, features.gallery, rule), {}
    results |= judged_results(judged, features, feature)
    if args.rerank:
        results[f"{feature}, re-ranked"] = metrics_from_blocks(rerank_blocks(query, gallery), rule)
    if args.expand:
        expanded = expand_queries(query, gallery)
        results[f"{feature}, expanded"] = metrics_from_blocks(distance_blocks(expanded, gallery), rule)
    if texts is not None:
        if not model.config.reid_text:
            print(
                "text queries: this model was trained without reid_text, so captions and images share no space: "
                "expect results at chance"
            )
        caption_results, people = caption_metrics(texts, features)
        results |= caption_results
        caption_people = dict.fromkeys(caption_results, people)
    if args.histogram:
        results["histogram"] = histogram_metrics(features.query_split, features.gallery_split, rule)
    return results, caption_people


def _run_settings(
    model: Encoder,
    processor: EncoderProcessor,
    features: ProtocolFeatures,
    args: EvaluateArguments,
    metadata: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the entries of metrics.json that describe the model, the data and the settings."""
    query, gallery, trained_on = features.query_split, features.gallery_split, model.config.trained_on or []
    folder = shipped_folder(metadata["model"])
    onnx = {"onnx": model.settings.options()} if isinstance(model, OnnxEncoder) else {}
    return {
        **metadata,
        "weights": model.file.digest if isinstance(model, OnnxEncoder) else weights_digest(folder),
        **onnx,
        "trained_on": trained_on,
        "tested_on": sorted(set(query["source"][:])),
        "published_counts": published_counts({"query": query, "gallery": gallery}),
        "overlap": overlaps(trained_on, query["source"]),
        "query_images": len(query),
        "gallery_images": len(gallery),
        "height": processor.height,
        "width": processor.width,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantize": None if isinstance(model, OnnxEncoder) else quantized_as(model),
        "exclude": args.exclude,
        "pool_tracks": args.pool_tracks,
        "test_feature": model.config.test_feature,
    }


def _further_protocols(
    report: dict[str, Any], features: ProtocolFeatures, feature: str, args: EvaluateArguments
) -> VerificationMetrics | None:
    """Adds single-shot CMC, verification and open-set search to the report, prints them, returns the verification."""
    query, gallery, rule = features.query[feature], features.gallery[feature], features.rule
    if args.single_shot:
        cmc = single_shot_cmc(distance_blocks(query, gallery), rule)
        report["single_shot_cmc"] = {f"rank{rank}": share for rank, share in cmc.items()}
        shares = ", ".join(f"Rank-{rank} {100 * share:.1f}" for rank, share in cmc.items())
        print(f"\nsingle gallery shot, 10 draws for each query, {feature}: {shares}")
    if not args.verification:
        return None
    pairs = verification_from_blocks(distance_blocks(query, gallery), rule)
    searches = open_set_from_blocks(distance_blocks(query, gallery), rule)
    report |= {"verification": pairs.to_dict(), "open_set": searches.to_dict()}
    print(f"\n{verification_lines(pairs, searches)}")
    return pairs


def _draw_pictures(
    folder: Path,
    features: ProtocolFeatures,
    feature: str,
    results: Mapping[str, RetrievalMetrics],
    args: EvaluateArguments,
    tested_on: str,
    model_name: str,
    verification: VerificationMetrics | None,
) -> list[str]:
    """Draws the ranked sheet and, if plots are on, the curves and the worst queries. Returns the files' names."""
    query, gallery = features.query_split, features.gallery_split
    ranking = rank_gallery(features.query[feature], features.gallery[feature], 10, same_person=features.rule)
    title = f"{tested_on}: nearest gallery images by the feature {feature!r}"
    draw_queries(folder / "sheet.png", ranking, evenly_spaced(len(query)), query, gallery, title=title)
    pictures = ["sheet.png"]
    if args.plots:
        draw_curves(folder / "curves.png", results, title=f"{tested_on}: {model_name}")
        draw_worst(folder / "worst.png", results[feature], ranking, query, gallery, f"Worst queries by {feature!r}")
        pictures += ["curves.png", "worst.png"]
    if args.plots and verification is not None:
        curves = {f"EER {verification.eer:.1%}": verification.roc}
        draw_roc(folder / "roc.png", curves, title=f"{tested_on}, feature {feature!r}")
        pictures.append("roc.png")
    return pictures


def people_intervals(metrics: RetrievalMetrics, persons: Sequence[int] | np.ndarray) -> dict[str, Interval]:
    """Returns the confidence intervals of a result; none if all queries with a match show one person."""
    valid = np.asarray(persons)[~np.isnan(metrics.average_precision)]
    return confidence_intervals(metrics, persons) if len(np.unique(valid)) > 1 else {}


def caption_features(model: Encoder, processor: EncoderProcessor, query: Dataset) -> np.ndarray:
    """Returns the features of a query split's captions, (C, D), on process 0. Raises UserError without captions."""
    captions, _ = caption_queries(query)
    if not captions:
        raise UserError("text_queries: the query split has no captions: give captions_file, or leave text_queries out")
    if not isinstance(model, MllmReIDModel) or not isinstance(processor, MllmReIDProcessor):
        raise UserError(
            "text_queries: a vision form or an ONNX file reads no text: give the checkpoint it was exported from"
        )
    return embed_captions(model, processor, captions)


def caption_metrics(texts: np.ndarray, features: ProtocolFeatures) -> tuple[dict[str, RetrievalMetrics], np.ndarray]:
    """Returns the results of captions (C, D) as queries, alone and with images, and each caption's person (C,)."""
    _, query_indices = caption_queries(features.query_split)
    gallery = (features.gallery[TEXT_FEATURE], features.query_split, features.gallery_split)
    results = {
        "text": text_to_image(texts, query_indices, *gallery),
        "image and text": image_and_text(texts, query_indices, features.query[TEXT_FEATURE], *gallery),
    }
    return results, np.asarray(features.query_split["person_id"][:])[query_indices]


def verification_lines(pairs: VerificationMetrics, searches: OpenSetMetrics) -> str:
    """Formats verification and open-set search in two lines; "-" if there are too few pairs to measure a rate."""
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
    """Draws the queries of lowest average precision, with their number of matches."""
    worst = worst_queries(metrics, 8)
    titles = [f"AP {metrics.average_precision[i]:.0%}, {len(metrics.match_ranks[i])} matches" for i in worst]
    draw_queries(path, ranking, worst, query, gallery, titles=titles, title=title)


def report_splits(
    split_metrics: Sequence[dict[str, dict[str, Any]]], args: EvaluateArguments, metadata: dict[str, Any]
) -> None:
    """Prints and writes the mean and deviation of the metrics over random splits.

    Args:
        split_metrics (`Sequence[dict]`): for each split the metrics by feature, as `RetrievalMetrics.to_dict`.
        args (`EvaluateArguments`): the options of the evaluation.
        metadata (`dict[str, Any]`): entries of metrics.json that describe the run.
    """
    means = {
        name: {
            key: _mean_and_deviation([split[name][key] for split in split_metrics]) for key in split_metrics[0][name]
        }
        for name in split_metrics[0]
    }
    columns = ("mAP", "rank1", "rank5", "rank10", "mINP")
    lines = [["", *columns]]
    for name, values in means.items():
        lines.append([name, *(f"{100 * values[key][0]:.1f} +- {100 * values[key][1]:.1f}" for key in columns)])
    print(f"{align(lines)}\nIn percent, mean and standard deviation over {args.splits} random splits.")
    path = Path(args.output_dir) / "metrics.json"
    report = {
        name: {key: {"mean": m, "deviation": d} for key, (m, d) in values.items()} for name, values in means.items()
    }
    write_json(path, {**metadata, "metrics_over_splits": report, "metrics_of_splits": split_metrics})
    print(f"metrics: {path}")


def _mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Returns the mean and the sample standard deviation."""
    return float(np.mean(values)), float(np.std(values, ddof=1))
