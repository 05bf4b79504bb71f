"""Verification of a shortlist in an evaluation: scores, the control, comparisons, pair metrics, cost."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..data.contract import image_sources
from ..model import MllmReIDModel, MllmReIDProcessor
from ..retrieval.exact import Ranking
from ..retrieval.matching import SamePerson
from ..retrieval.ranking import rank_gallery
from ..utils.errors import UserError
from ..utils.processes import on_main
from .calibration import probability
from .metrics import RetrievalMetrics, metrics_from_blocks
from .pair_fusion import PairFusion, calibration_error
from .pair_scores import PairCost, shared_scores
from .protocol import ProtocolFeatures
from .report import align, difference_lines
from .statistics import compare
from .threshold import load_thresholds
from .torch_embedding import Encoder, EncoderProcessor
from .verification import VerificationMetrics, verification_from_blocks
from .verified_ranking import verified_blocks

FPRS = (0.01, 0.001)


@dataclass(frozen=True)
class Verified:
    """The scored shortlists of all queries.

    Args:
        shortlist (`Ranking`): the N nearest gallery images of each query by the test feature.
        scores (`np.ndarray`): (Q, N) float32 pair scores; NaN where a query has fewer images.
        cost (`PairCost`): what the scores cost.
        fusion (`PairFusion`): the fusion of the checkpoint.
    """

    shortlist: Ranking
    scores: np.ndarray
    cost: PairCost
    fusion: PairFusion

    def log_odds(self, gallery: int) -> np.ndarray:
        """Returns the log odds (Q, N) in a gallery of this size; NaN where a query has fewer images."""
        # There the distance is infinite, and a factor may be 0.
        distances = np.where(self.shortlist.indices >= 0, self.shortlist.distances, 0)
        return self.fusion.log_odds(distances, self.scores, gallery)


def fusion_of(model: Encoder, name: str, revision: str | None = None) -> PairFusion:
    """Returns the fusion for the test feature of a checkpoint.

    Args:
        model (`Encoder`): the model.
        name (`str`): its checkpoint, a folder or a name on the Hub.
        revision (`str`, *optional*): revision on the Hub.

    Raises:
        UserError: if the model has no language model or no question about pairs, or the checkpoint has no fusion.
    """
    if not isinstance(model, MllmReIDModel):
        raise UserError(
            f"verify_top: {name} is a vision form or an ONNX file, and pairs need a language model: give a "
            "checkpoint that was trained with pair_weight, or add one with verify_with"
        )
    if model.config.pair_question_ids is None or model.config.pair_answer_ids is None:
        raise UserError(f"verify_top: {name} has no question about pairs: train it with pair_weight, or leave it out")
    feature = model.config.test_feature
    threshold = load_thresholds(name, revision).get(feature)
    fusion = None if threshold is None else threshold.fusion
    if fusion is None:
        # `calibrate` fits one for a model that was trained with pairs.
        how = ", or fit it with calibrate" if model.config.pair_weight else ""
        raise UserError(
            f"verify_top: the checkpoint of {name} has no fusion of pair scores for the feature {feature!r}: train "
            f"with pair_weight, this test_feature and at least 10 people in val{how}"
        )
    return fusion


def find_shortlist(features: ProtocolFeatures, feature: str, top: int) -> Ranking:
    """Finds the `top` nearest gallery images of each query, of a smaller gallery all. All processes get the result."""
    top = min(top, len(features.gallery_split))
    return on_main(
        lambda: rank_gallery(features.query[feature], features.gallery[feature], top, same_person=features.rule)
    )


def verify_shortlist(
    model: Encoder,
    processor: EncoderProcessor,
    features: ProtocolFeatures,
    fusion: PairFusion,
    shortlist: Ranking,
    **options: Any,
) -> Verified | None:
    """Scores each query with the images of its shortlist. All processes of a run call it, and share the queries.

    Args:
        model (`MllmReIDModel`): a model with a question about pairs.
        processor (`MllmReIDProcessor`): its processor.
        features (`ProtocolFeatures`): features and splits of the queries and the gallery.
        fusion (`PairFusion`): the fusion of the checkpoint.
        shortlist (`Ranking`): the images, with the distances of the model.
        options: options of `score_shortlist`.

    Returns:
        `Verified` on process 0, None on the others.
    """
    assert isinstance(model, MllmReIDModel) and isinstance(processor, MllmReIDProcessor)  # a fusion has them
    query, gallery = image_sources(features.query_split), image_sources(features.gallery_split)
    scored = shared_scores(model, processor, query, gallery, shortlist.indices, **options)
    return None if scored is None else Verified(shortlist, *scored, fusion)


def verified_results(verified: Verified, features: ProtocolFeatures, feature: str) -> dict[str, RetrievalMetrics]:
    """Computes the metrics of the verified ranking, and of a control whose pair scores say nothing.

    In the control each query's candidates exchange their images at random before they are scored; a pair score depends
    on its two images alone, so this is a permutation of the query's scores. Everything else is the same. If the control
    gains as much, the gain does not come from what the pairs show.
    """
    control = replace(verified, scores=shuffled(verified.scores))
    return {
        name: reordered_metrics(features, feature, verified.shortlist, by.log_odds(len(features.gallery_split)))
        for name, by in zip(verified_rows(feature), (verified, control), strict=True)
    }


def verified_rows(feature: str) -> tuple[str, str]:
    """Returns the names of the verified ranking and of its control in the table."""
    return f"{feature}, verified", f"{feature}, verified, candidates shuffled"


def reordered_metrics(
    features: ProtocolFeatures, feature: str, shortlist: Ranking, log_odds: np.ndarray
) -> RetrievalMetrics:
    """Computes the metrics of the ranking by a feature whose shortlist (Q, N) is in the order of its log odds."""
    blocks = verified_blocks(features.query[feature], features.gallery[feature], shortlist, log_odds)
    return metrics_from_blocks(blocks, features.rule)


def shuffled(scores: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns scores (Q, N) with those of each query in random order; the NaN at the end of a row stay there."""
    chance = np.random.default_rng(seed).random(scores.shape)
    chance[np.isnan(scores)] = np.inf
    return np.take_along_axis(scores, chance.argsort(axis=1), axis=1)


@dataclass(frozen=True)
class PairMetrics:
    """Metrics of the pairs of all shortlists.

    Args:
        by (`dict[str, VerificationMetrics]`): by "distance", "pair score" and "fused"; empty if all pairs are of one
            kind.
        ece (`dict[str, float]`): expected calibration error of the sigmoid of the pair score, and of the fused
            probability.
        pairs (`int`): number of pairs.
        same (`int`): how many of them are of one person.
    """

    by: dict[str, VerificationMetrics]
    ece: dict[str, float]
    pairs: int
    same: int

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields for JSON."""
        verification = {name: metrics.to_dict() for name, metrics in self.by.items()}
        return {"pairs": self.pairs, "same": self.same, "ece": self.ece, "verification": verification}


def pair_metrics(verified: Verified, rule: SamePerson) -> PairMetrics:
    """Computes ROC, EER and TPR at FPR of the pairs of all shortlists, and the calibration errors."""
    shortlist, there = verified.shortlist, verified.shortlist.indices >= 0
    persons = np.broadcast_to(rule.query_persons[:, None], there.shape)[there]
    same = persons == rule.gallery_persons[shortlist.indices[there]]
    distances, scores = shortlist.distances[there], verified.scores[there]
    odds = verified.fusion.log_odds(distances, scores, len(rule.gallery_persons))
    by = {}
    if 0 < same.sum() < len(same):
        # All pairs as the images of one query.
        kinds = SamePerson([1], same.astype(np.int64))
        for name, values in (("distance", distances), ("pair score", -scores), ("fused", -odds)):
            block = values.astype(np.float32)[None]
            by[name] = verification_from_blocks([(slice(0, 1), block)], kinds, fprs=FPRS)
    stated = {"pair score": probability(scores), "fused": probability(odds)}
    ece = {name: calibration_error(values, same) for name, values in stated.items()}
    return PairMetrics(by, ece, len(same), int(same.sum()))


def report_verified(
    verified: Verified, results: Mapping[str, RetrievalMetrics], features: ProtocolFeatures, feature: str
) -> dict[str, Any]:
    """Prints the differences to the embedding alone, the metrics of the shortlists' pairs and the cost.

    Args:
        verified (`Verified`): the scored shortlists.
        results (`Mapping[str, RetrievalMetrics]`): the results of the test feature, and those of `verified_results`.
        features (`ProtocolFeatures`): splits and matching rule.
        feature (`str`): the test feature.

    Returns:
        `dict[str, Any]`: the same for metrics.json.
    """
    pairs, cost = pair_metrics(verified, features.rule), verified.cost.to_dict()
    persons = features.query_split["person_id"][:]
    differences = {name: print_difference(results, name, feature, persons) for name in verified_rows(feature)}
    print(f"\n{verified_lines(verified, pairs)}")
    queries, top = verified.scores.shape
    return {
        "top": top,
        "fusion": asdict(verified.fusion),
        "differences": {name: difference for name, difference in differences.items() if difference},
        "shortlist": pairs.to_dict(),
        "cost": cost,
        "cost_per_query": {name: value / queries for name, value in cost.items()},
    }


def print_difference(
    results: Mapping[str, RetrievalMetrics], name: str, baseline: str, persons: Sequence[int]
) -> dict[str, Any]:
    """Prints the paired difference of a row of the table to another one, and returns it for metrics.json.

    With queries of one person there is none: nothing is printed, and the result is empty.
    """
    valid = np.asarray(persons)[~np.isnan(results[baseline].average_precision)]
    if len(np.unique(valid)) < 2:
        return {}
    differences = compare(results[name], results[baseline], persons)
    print(f"\n{name} less {baseline}, same queries:\n{difference_lines(differences)}")
    return {key: difference.to_dict() for key, difference in differences.items()}


def verified_lines(verified: Verified, pairs: PairMetrics) -> str:
    """Formats the metrics of the shortlists' pairs as a table, and the cost per query in one line."""
    queries, top = verified.scores.shape
    lines = [["", "EER", *(f"TPR at FPR {fpr:g}" for fpr in FPRS), "calibration error"]]
    for name in ("distance", "pair score", "fused"):
        metrics = pairs.by.get(name)
        rates = [np.nan] * (1 + len(FPRS)) if metrics is None else [metrics.eer, *metrics.tpr.values()]
        error = f"{pairs.ece[name]:.3f}" if name in pairs.ece else "-"
        lines.append([name, *("-" if np.isnan(rate) else f"{rate:.1%}" for rate in rates), error])
    fusion = verified.fusion
    note = "" if fusion.top == top else f"; the fusion was fitted on the {fusion.top} nearest"
    return (
        f"pairs of the {top} nearest images: {pairs.pairs:,}, {pairs.same:,} of one person{note}\n{align(lines)}\n"
        f"share of the pair score in the fusion: {fusion.share:.2f} [{fusion.low:.2f}, {fusion.high:.2f}], "
        f"fitted on {fusion.people:,} people\n"
        f"cost per query: {cost_per_query(verified.cost, queries)}"
    )


def cost_per_query(cost: PairCost, queries: int) -> str:
    """Formats what the pairs of a query cost in the mean."""
    return (
        f"{cost.pairs / queries:.1f} pairs, {cost.crops / queries:.1f} crops read, "
        f"{(cost.reading_passes + cost.question_passes) / queries:.2f} forward passes, "
        f"{cost.seconds / queries:.3f} s"
    )
