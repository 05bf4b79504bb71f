"""The fit of a calibration on labelled people who are not in the training, such as those of val."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.optimize import isotonic_regression, minimize

from ..retrieval.merging import Groups, merge_groups
from ..retrieval.neighbourhoods import Candidates, find_candidates
from .calibration import Calibration, log_odds, probability
from .grouping import grouping_metrics

PRECISION = 0.95
LEAST_PEOPLE = 10
MOST_IMAGES = 2000
# Of val, galleries of other kinds are drawn: few crops of a person, many strangers, uneven numbers.
FEW, STRANGERS, UNEVEN = 3, 4, 10
# Where the fit starts: log odds, and their changes with distance, similarity and the sizes of both groups.
START = (3.0, -8.0, 5.0, -1.0, 0.4)
ROUNDS, LOOKED_AT, RIDGE = 2, -2.5, 1e-4
BOUNDS = [(None, None), (None, 0), (0, None), (None, None), (None, None)]
THRESHOLDS = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)  # log odds: probabilities of 0.5 to 0.993
TABLE = 32


def fit_calibration(
    features: np.ndarray, persons: Sequence[int] | np.ndarray, *, precision: float = PRECISION
) -> Calibration | None:
    """Fits a calibration on crops of known people who were not in the training.

    Galleries of four kinds are drawn of the crops: all of them, 3 of each person, all of every fourth person with one
    crop of the others, and 1 to 10 of each person. In these, groups of one person are merged in the order of their log
    odds; every pair of groups that comes to be merged is an example, right or wrong, of a logistic regression, and the
    log odds are fitted anew. The threshold is the lowest of a few log odds whose pairwise precision, in the mean over
    the four galleries, reaches `precision`.

    The threshold holds for people who are as similar as those of val, in a gallery of about its size.

    Args:
        features (`np.ndarray`): (N, D) L2-normalised features. Of more than 2,000, those of random people are used.
        persons (`Sequence[int]` or `np.ndarray`): (N,) the person of each crop.
        precision (`float`, defaults to 0.95): pairwise precision of groups at the suggested threshold.

    Returns:
        `Calibration`, or `None` for fewer than 10 people, without two crops of a person, or if no threshold reaches the
        precision.

    Source: Zadrozny and Elkan 2002 (isotonic regression).
    """
    features, persons = np.asarray(features, dtype=np.float32), np.unique(np.asarray(persons), return_inverse=True)[1]
    people = int(persons.max(initial=-1)) + 1
    if people < LEAST_PEOPLE or len(persons) == people:
        return None
    random = np.random.default_rng(0)
    counts = np.bincount(persons)[order := random.permutation(people)]
    kept = order[: max(int((counts.cumsum() <= MOST_IMAGES).sum()), LEAST_PEOPLE)]
    rows = np.flatnonzero(np.isin(persons, kept))
    features, persons = features[rows], persons[rows]
    if len(np.unique(persons)) == len(persons):
        return None
    galleries = [(f, p, find_candidates(f)) for f, p in _galleries(features, persons, random)]
    merge: tuple[float, ...] = START
    for _ in range(ROUNDS):
        examples = np.concatenate([_examples(*gallery, merge) for gallery in galleries])
        if not 0 < examples[:, -1].sum() < len(examples):
            return None
        merge = _fit_odds(examples)
    suggested = _suggest(galleries, merge, precision)
    if suggested is None:
        return None
    return Calibration(*_pair_table(features, persons), merge, *suggested, len(np.unique(persons)), len(persons))


def _galleries(
    features: np.ndarray, persons: np.ndarray, random: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields features and people of the galleries of `fit_calibration`."""
    order = random.permutation(len(persons))
    order = order[np.argsort(persons[order], kind="stable")]
    rank = np.empty(len(persons), np.int64)  # of a crop among those of its person
    rank[order] = np.arange(len(order)) - np.searchsorted(persons[order], persons[order])
    place = np.unique(persons, return_inverse=True)[1]
    for kept in (rank >= 0, rank < FEW, (place % STRANGERS == 0) | (rank < 1), rank <= place % UNEVEN):
        yield features[kept], persons[kept]


def _examples(
    features: np.ndarray, persons: np.ndarray, candidates: Candidates, merge: tuple[float, ...]
) -> np.ndarray:
    """Returns the evidence of every pair of groups that comes to be merged, and whether it is one person: (n, 5)."""
    groups, examples = Groups(features, candidates, np.arange(len(features))), [np.empty(5)][:0]

    def is_right(first: int, second: int, score: float, evidence: np.ndarray) -> bool:
        # Wrong pairs are not merged, so that a group shows one person.
        right = bool(persons[first] == persons[second])
        examples.append(np.append(evidence, right))
        return right

    merge_groups(groups, lambda evidence: log_odds(merge, evidence), LOOKED_AT, is_right)
    return np.array(examples).reshape(-1, 5)


def _fit_odds(examples: np.ndarray) -> tuple[float, ...]:
    """Returns the coefficients of a logistic regression; odds fall with the distance and rise with the similarity."""
    columns, right = np.column_stack([np.ones(len(examples)), examples[:, :-1]]), examples[:, -1]

    def loss(factors: np.ndarray) -> tuple[float, np.ndarray]:
        odds, shrunk = columns @ factors, np.append(0, factors[1:])
        value = float((np.logaddexp(0, odds) - right * odds).mean() + RIDGE * (shrunk**2).sum())
        return value, columns.T @ (probability(odds) - right) / len(right) + 2 * RIDGE * shrunk

    fitted = minimize(loss, np.array(START), jac=True, method="L-BFGS-B", bounds=BOUNDS).x
    return tuple(round(float(factor), 4) for factor in fitted)


def _suggest(
    galleries: list[tuple[np.ndarray, np.ndarray, Candidates]], merge: tuple[float, ...], wanted: float
) -> tuple[float, float, float] | None:
    """Returns the lowest log odds that reach the precision, with precision and recall; None if the highest do not."""

    def measure(least: float) -> tuple[float, float]:
        measured = []
        for features, persons, candidates in galleries:
            groups = Groups(features, candidates, np.arange(len(features)))
            merge_groups(groups, lambda evidence: log_odds(merge, evidence), least, lambda *pair: True)
            measured.append(grouping_metrics(groups.root, persons))
        precisions = [metrics.precision for metrics in measured if not np.isnan(metrics.precision)]
        recalls = [metrics.recall for metrics in measured if not np.isnan(metrics.recall)]
        # Without a merged pair nothing is wrong, and nothing is measured.
        return float(np.mean(precisions)) if precisions else 1.0, float(np.mean(recalls))

    found = bisect_left(THRESHOLDS, True, key=lambda least: measure(least)[0] >= wanted)
    if found == len(THRESHOLDS):
        return None
    precision, recall = measure(THRESHOLDS[found])
    return (THRESHOLDS[found], precision, recall) if recall > 0 else None


def _pair_table(features: np.ndarray, persons: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the distances and the log ratios of `Calibration`."""
    points = features.astype(np.float64)
    first, second = np.triu_indices(len(points), 1)
    distances = np.maximum(1 - (points @ points.T)[first, second], 0)
    same = persons[first] == persons[second]
    genuine, impostor = distances[same], distances[~same]
    # Bins of equal numbers of genuine pairs, and of impostor pairs where these are.
    shares = np.linspace(0, 1, TABLE // 2 + 1)
    inner = np.unique(np.concatenate([np.quantile(genuine, shares), np.quantile(impostor, shares)]))[1:-1]
    edges = np.concatenate([[0], inner[inner > 0], [np.inf]])
    counts = np.stack([np.histogram(values, edges)[0] for values in (genuine, impostor)]) + 0.5
    ratios = np.log(counts[0] / counts[0].sum()) - np.log(counts[1] / counts[1].sum())
    bins = np.searchsorted(edges, distances, side="right") - 1
    totals = np.bincount(bins, minlength=len(counts[0]))
    centres = np.bincount(bins, weights=distances, minlength=len(totals)) / np.maximum(totals, 1)
    # Each bin counts as much as its share among genuine and impostor pairs.
    weights = (counts / counts.sum(1, keepdims=True)).sum(0)
    monotone = isotonic_regression(ratios, weights=weights, increasing=False).x
    used = totals > 0
    return _rounded(centres[used]), _rounded(monotone[used])


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    """Returns numbers with the digits that a file shows."""
    return tuple(round(float(value), 4) for value in values)
