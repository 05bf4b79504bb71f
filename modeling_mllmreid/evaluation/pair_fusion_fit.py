"""The fit of a fusion on the shortlists of labelled people who are not in the training, such as those of val."""

from typing import Any

import numpy as np
from datasets import Dataset
from scipy.optimize import minimize

from ..data.contract import image_sources
from ..model import MllmReIDModel, MllmReIDProcessor
from ..retrieval.matching import SamePerson
from ..retrieval.points import Features
from ..retrieval.ranking import rank_gallery
from ..utils.errors import UserError
from ..utils.processes import on_main
from .calibration import probability
from .calibration_fit import LEAST_PEOPLE, RIDGE
from .pair_fusion import PairFusion, calibration_error
from .pair_scores import score_shortlist, shared_scores

TOP = 20
# The odds fall with the distance and rise with the score.
BOUNDS = [(None, None), (None, 0), (0, None)]
DRAWS, FOLDS = 200, 5


class TooFewPeople(UserError):
    """The labelled people do not suffice for a fusion."""


def fit_fusion_of_shortlists(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    query: Dataset,
    gallery: Dataset,
    query_features: Features,
    gallery_features: Features,
    same_person: SamePerson,
    *,
    top: int = TOP,
    share: bool = True,
    **options: Any,
) -> PairFusion:
    """Scores the shortlists of val, or of other people, and fits the fusion. All processes call it, and get the result.

    Args:
        model (`MllmReIDModel`): a model that was trained with `pair_weight`.
        processor (`MllmReIDProcessor`): its processor.
        query, gallery (`Dataset`): images of people who are not in the training.
        query_features (`np.ndarray` or `Tensor`): (Q, D) features of the queries, on process 0.
        gallery_features (`np.ndarray` or `Tensor`): (G, D) features of the gallery, on process 0.
        same_person (`SamePerson`): the matching rule.
        top (`int`, defaults to 20): gallery images of a query's shortlist.
        share (`bool`, defaults to `True`): whether processes share the queries. If they share the weights, each scores
            all queries, as their forward passes must agree.
        options: options of `score_shortlist`.

    Returns:
        `PairFusion`

    Raises:
        TooFewPeople: as `fit_fusion`.
    """
    ranking = on_main(lambda: rank_gallery(query_features, gallery_features, top, same_person=same_person))
    score = shared_scores if share else score_shortlist
    scored = score(model, processor, image_sources(query), image_sources(gallery), ranking.indices, **options)

    def fit() -> PairFusion:
        assert scored is not None  # process 0 has the scores
        there = ranking.indices >= 0
        persons = np.broadcast_to(same_person.query_persons[:, None], there.shape)[there]
        same = persons == same_person.gallery_persons[ranking.indices[there]]
        return fit_fusion(ranking.distances[there], scored[0][there], same, persons, top=top, gallery=len(gallery))

    return on_main(fit)


def fit_fusion(
    distances: np.ndarray, scores: np.ndarray, same: np.ndarray, persons: np.ndarray, *, top: int, gallery: int
) -> PairFusion:
    """Fits the log odds of pairs by a logistic regression on their distances and pair scores.

    This is Platt's calibration and the weight of both in one. The interval of the score's share is that of people drawn
    with replacement. The calibration error is measured on a fifth of the people at a time, by a fit on the others.

    Args:
        distances (`np.ndarray`): (N,) cosine distances of the pairs.
        scores (`np.ndarray`): (N,) pair scores.
        same (`np.ndarray`): (N,) bool, whether a pair shows one person.
        persons (`np.ndarray`): (N,) person of each pair's query.
        top (`int`): gallery images of a query's shortlist.
        gallery (`int`): number of gallery images.

    Returns:
        `PairFusion`

    Raises:
        TooFewPeople: for fewer than 10 people, or if the pairs of one kind are missing or are of one or two people.

    Source: Platt 1999; Efron and Tibshirani 1993 (percentile interval).
    """
    names, person = np.unique(persons, return_inverse=True)
    people = len(names)
    if people < LEAST_PEOPLE:
        raise TooFewPeople(f"the queries show {people} people, and {LEAST_PEOPLE} are needed")
    for kind, pairs in (("of one person", same), ("of two people", ~same)):
        if len(np.unique(person[pairs])) < 3:
            raise TooFewPeople(f"fewer than 3 people have pairs {kind} among their {top} nearest images")
    columns = np.column_stack([distances, scores]).astype(np.float64)
    random = np.random.default_rng(0)
    fold = random.permutation(people) % FOLDS
    fused = np.empty(len(same))
    for number in range(FOLDS):
        # Pairs of others with the people of the fold stay: without them the share of one person would be too large.
        left_out = fold[person] == number
        constant, factors = _fit(columns, same, (~left_out).astype(np.float64))
        fused[left_out] = constant + columns[left_out] @ factors
    shares = []
    for _ in range(DRAWS):
        weights = np.bincount(random.integers(people, size=people), minlength=people)[person]
        if 0 < weights[same].sum() < weights.sum():
            shares.append(_share(_fit(columns, same, weights)[1], columns))
    low, high = np.quantile(shares, [0.025, 0.975])
    constant, factors = _fit(columns, same, np.ones(len(same)))
    return PairFusion(
        constant=constant,
        distance=float(factors[0]),
        score=float(factors[1]),
        share=_share(factors, columns),
        low=float(low),
        high=float(high),
        people=people,
        pairs=len(same),
        top=top,
        gallery=gallery,
        ece_before=calibration_error(probability(columns[:, 1]), same),
        ece_after=calibration_error(probability(fused), same),
    )


def _fit(columns: np.ndarray, same: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the constant and the factors (2,) of a logistic regression on columns (N, 2) with weights (N,)."""
    weights = weights / weights.sum()
    mean = weights @ columns
    deviation = np.sqrt(weights @ (columns - mean) ** 2)
    deviation[deviation <= 1e-12] = np.inf  # a column that is constant says nothing
    scaled = np.column_stack([np.ones(len(same)), (columns - mean) / deviation])

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        odds, shrunk = scaled @ values, np.append(0, values[1:])
        value = float(weights @ (np.logaddexp(0, odds) - same * odds) + RIDGE * (shrunk**2).sum())
        return value, scaled.T @ (weights * (probability(odds) - same)) + 2 * RIDGE * shrunk

    start = np.array([0.0, -1.0, 1.0])
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=BOUNDS, options={"gtol": 1e-8, "ftol": 1e-14}).x
    factors = found[1:] / deviation
    return float(found[0] - factors @ mean), factors


def _share(factors: np.ndarray, columns: np.ndarray) -> float:
    """Returns the share of the score in the change of the log odds: factors times standard deviations."""
    distance, score = np.abs(factors) * columns.std(axis=0)
    return float(score / (distance + score)) if distance + score > 0 else 0.0
