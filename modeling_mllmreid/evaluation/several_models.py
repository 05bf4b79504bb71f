"""Several models on one shortlist: each turns its pairs into calibrated log odds, and their mean gives the order.

The shortlist is that of the evaluated model. A model with a fusion takes its distance and pair score, any other one the
log ratio of its calibration at its distance. That is its log odds but for a constant, on which the order does not
depend. All models count equally, and nothing is fitted: each calibration comes from people of the model's own.

Source: Cermak et al. 2024 (WildFusion), who average calibrated probabilities.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.leakage import overlaps
from ..model import MllmReIDConfig, MllmReIDVisionConfig
from ..retrieval.exact import Ranking
from ..retrieval.ranking import listed_distances
from ..utils.errors import UserError
from ..utils.processes import on_main
from .calibration import Calibration
from .metrics import RetrievalMetrics
from .onnx_encoder import OnnxConfig
from .pair_fusion import PairFusion
from .protocol import ProtocolFeatures
from .report import align
from .threshold import load_thresholds
from .torch_embedding import Encoder, EncoderProcessor
from .verified_report import (
    Verified,
    cost_per_query,
    find_shortlist,
    print_difference,
    reordered_metrics,
    report_verified,
    verified_results,
    verified_rows,
    verify_shortlist,
)

PairOdds = PairFusion | Calibration
Loaded = tuple[Encoder, EncoderProcessor]


@dataclass(frozen=True)
class Calibrated:
    """The shortlists of all queries, judged by distances alone.

    Args:
        shortlist (`Ranking`): images and their distances by the feature of the model.
        calibration (`Calibration`): the calibration of the checkpoint.
    """

    shortlist: Ranking
    calibration: Calibration

    def log_odds(self, gallery: int) -> np.ndarray:
        """Returns the log ratios (Q, N): log odds but for a constant, which would hold the size of the gallery."""
        return self.calibration.log_ratio(self.shortlist.distances)


@dataclass(frozen=True)
class Judged:
    """What one model says about the pairs of all shortlists.

    Args:
        name (`str`): name of the model in reports.
        by (`Verified` or `Calibrated`): its judgement.
        overlap (`list[str]`): warnings about people of the test set whom the model was trained on, of `overlaps`.
    """

    name: str
    by: Verified | Calibrated
    overlap: list[str]


@dataclass(frozen=True)
class FurtherModel:
    """A model that is loaded when its turn comes, so that one at a time is in memory next to the evaluated one.

    Args:
        name (`str`): its name in reports.
        odds (`PairFusion` or `Calibration`): what its log odds come from, of `pair_odds_of`.
        load (`Callable`): returns the model and its processor.
    """

    name: str
    odds: PairOdds
    load: Callable[[], Loaded]


def pair_odds_of(
    config: MllmReIDConfig | MllmReIDVisionConfig | OnnxConfig, name: str, revision: str | None = None
) -> PairOdds:
    """Returns the fusion for the test feature of a checkpoint, or the calibration of a model that compares no pairs.

    Args:
        config (`MllmReIDConfig`, `MllmReIDVisionConfig` or `OnnxConfig`): the configuration of the model.
        name (`str`): its checkpoint, a folder or a name on the Hub.
        revision (`str`, *optional*): revision on the Hub.

    Raises:
        UserError: if the checkpoint has neither, or the name is that of a file, which stores neither.
    """
    if os.path.isfile(name):
        raise UserError(
            f"verify_with: {name} is a file, and the calibration is in the threshold.json of a checkpoint: give a "
            "folder that has both"
        )
    feature = config.test_feature
    stored = load_thresholds(name, revision).get(feature)
    fusion = None if stored is None else stored.fusion
    asks = isinstance(config, MllmReIDConfig) and config.pair_question_ids and config.pair_answer_ids
    if fusion is not None and asks:
        return fusion
    if stored is None or stored.calibration is None:
        raise UserError(
            f"verify_with: the checkpoint of {name} has no fusion of pair scores and no calibration for the feature "
            f"{feature!r}: train with this test_feature and at least 10 people in val, or leave it out"
        )
    return stored.calibration


def judge_shortlist(
    name: str,
    loaded: Loaded,
    features: ProtocolFeatures,
    odds: PairOdds,
    top: int,
    further: Sequence[FurtherModel],
    embed: Callable[[Encoder, EncoderProcessor], ProtocolFeatures],
    **options: Any,
) -> list[Judged]:
    """Finds the `top` nearest images of each query by one model, which all models judge. All processes call it.

    Args:
        name (`str`): name of the evaluated model in reports.
        loaded (`tuple[Encoder, EncoderProcessor]`): this model and its processor.
        features (`ProtocolFeatures`): its features of the queries and the gallery.
        odds (`PairFusion` or `Calibration`): what its log odds come from.
        top (`int`): number of gallery images of a query's shortlist; of a smaller gallery all.
        further (`Sequence[FurtherModel]`): other models that judge the same shortlist.
        embed (`Callable`): returns the features of the same images by another model and its processor.
        options: options of `score_shortlist`.

    Returns:
        `list[Judged]`: of each model, the evaluated one first. On the other processes judgements by scores are missing.
    """
    shortlist = find_shortlist(features, loaded[0].config.test_feature, top)
    judged = _judge(name, loaded, features, odds, shortlist, **options)
    for other in further:
        loaded = other.load()
        features = embed(*loaded)
        own = on_main(_by_feature, features, loaded[0].config.test_feature, shortlist)
        judged += _judge(other.name, loaded, features, other.odds, own, **options)
        del loaded, features  # before the next one is loaded
    return judged


def _judge(
    name: str, loaded: Loaded, features: ProtocolFeatures, odds: PairOdds, shortlist: Ranking, **options: Any
) -> list[Judged]:
    """Judges the pairs of a shortlist with the distances of this model; none where another process has the scores."""
    by: Verified | Calibrated | None
    if isinstance(odds, Calibration):
        by = Calibrated(shortlist, odds)
    else:
        by = verify_shortlist(*loaded, features, odds, shortlist, **options)
    seen = overlaps(loaded[0].config.trained_on or [], features.query_split["source"])
    return [] if by is None else [Judged(name, by, seen)]


def _by_feature(features: ProtocolFeatures, feature: str, shortlist: Ranking) -> Ranking:
    """Returns a shortlist with the distances by another feature; the images keep their places."""
    distances = listed_distances(features.query[feature], features.gallery[feature], shortlist.indices)
    return Ranking(shortlist.indices, distances)


def judged_results(judged: Sequence[Judged], features: ProtocolFeatures, feature: str) -> dict[str, RetrievalMetrics]:
    """Computes the metrics of the rankings whose shortlists have another order than that of the test feature.

    Args:
        judged (`Sequence[Judged]`): of `judge_shortlist`; empty without a shortlist.
        features (`ProtocolFeatures`): features of the evaluated model, splits and matching rule.
        feature (`str`): its test feature.

    Returns:
        `dict[str, RetrievalMetrics]`: by the name of the row in the table: those of `verified_results` if the evaluated
        model compares pairs, and with further models that of the mean log odds of all.
    """
    results, own = {}, _own_scores(judged)
    if own is not None:
        results = verified_results(own, features, feature)
    if len(judged) > 1:
        shortlist, gallery = judged[0].by.shortlist, len(features.gallery_split)
        mean = np.mean([model.by.log_odds(gallery) for model in judged], axis=0)
        results[_row(feature, judged)] = reordered_metrics(features, feature, shortlist, mean)
    return results


def report_judged(
    judged: Sequence[Judged],
    results: Mapping[str, RetrievalMetrics],
    features: ProtocolFeatures,
    feature: str,
) -> dict[str, Any]:
    """Prints the report of `report_verified`, that of several models, and returns both for metrics.json.

    Args:
        judged (`Sequence[Judged]`): as in `judged_results`.
        results (`Mapping[str, RetrievalMetrics]`): the results of the test feature, and those of `judged_results`.
        features (`ProtocolFeatures`): splits and matching rule.
        feature (`str`): the test feature.

    Returns:
        `dict[str, Any]`: the entries `verified` and `verified_by_models`, as far as there are such results.
    """
    report, own = {}, _own_scores(judged)
    if own is not None:
        report["verified"] = report_verified(own, results, features, feature)
    if len(judged) > 1:
        report["verified_by_models"] = _report_several(judged, results, features, feature)
    return report


def _own_scores(judged: Sequence[Judged]) -> Verified | None:
    """Returns the shortlists as the evaluated model scored them, if it compares pairs."""
    by = judged[0].by if judged else None
    return by if isinstance(by, Verified) else None


def _row(feature: str, judged: Sequence[Judged]) -> str:
    """Returns the name of the ranking by all models in the table."""
    return f"{feature}, verified by {len(judged)} models"


def _report_several(
    judged: Sequence[Judged],
    results: Mapping[str, RetrievalMetrics],
    features: ProtocolFeatures,
    feature: str,
) -> dict[str, Any]:
    """Prints the differences to the embedding alone and to the evaluated model alone, and what each model did."""
    row, persons = _row(feature, judged), features.query_split["person_id"][:]
    baselines = [name for name in (feature, verified_rows(feature)[0]) if name in results]
    differences = {baseline: print_difference(results, row, baseline, persons) for baseline in baselines}
    queries, top = judged[0].by.shortlist.indices.shape
    models = []
    lines = [["model", "log odds by", "fitted on people", "cost per query"]]
    for model in judged:
        by = model.by
        if isinstance(by, Verified):
            source, people, cost = "distance and pair score", by.fusion.people, by.cost.to_dict()
            words = cost_per_query(by.cost, queries)
        else:
            source, people, cost, words = "distance", by.calibration.people, None, "no pair"
        stated = {"model": model.name, "by": source, "people": people, "overlap": model.overlap, "cost": cost}
        models.append(stated)
        lines.append([model.name, source, f"{people:,}", words])
    print(f"\n{row}, of equal weight:\n{align(lines)}")
    for model in judged[1:]:  # the evaluated one has its warning at the top
        for text in model.overlap:
            print(f"warning: {model.name}: {text}: the result of {row} is not that of unseen people")
    return {"top": top, "models": models, "differences": {name: d for name, d in differences.items() if d}}
