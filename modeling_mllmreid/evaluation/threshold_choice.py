"""The choice of a threshold on the val split, with the interval of its distance."""

from bisect import bisect_left

import numpy as np

from ..retrieval.distances import distance_blocks
from ..retrieval.matching import SamePerson
from ..retrieval.points import Features
from .statistics import Error, holds_share, people_error
from .threshold import Threshold
from .verification import OpenSetDistances, open_set_distances, share_of, threshold_at

FARTHEST = 2.0  # the largest cosine distance
ROUNDING = 1e-6  # of a cosine distance between two equal features in float32


def choose_threshold(
    query_features: Features, gallery_features: Features, same_person: SamePerson, *, fpir: float = 0.1
) -> Threshold | None:
    """Chooses the largest cosine distance at which at most the share fpir of non-mated searches finds a person.

    The interval contains the distances whose share of false positives does not contradict fpir, for as many independent
    searches as are equally certain. The people are the independent draws, with all their searches, and two similar
    people find each other. The interval is wide with 12 people, or if few people make most searches.

    Args:
        query_features (`np.ndarray` or `Tensor`): (Q, D) features of the val queries.
        gallery_features (`np.ndarray` or `Tensor`): (G, D) features of the val gallery.
        same_person (`SamePerson`): the matching rule.
        fpir (`float`, defaults to 0.1): false positive identification rate, as in `open_set_from_blocks`.

    Returns:
        `Threshold`, or `None` if there are fewer than 1 / fpir searches, no match, only one person, or if every search
        finds another person at distance 0, but for rounding. If many searches do (copies under two names), the
        threshold is 0, with the rate that it has.

    Raises:
        UserError: if fpir is not between 0 and 1.
    """
    distances = open_set_distances(distance_blocks(query_features, gallery_features), same_person)
    mated = distances.mate[~np.isnan(distances.mate)]
    if not share_of(fpir, len(distances.other)) or not len(mated) or np.isinf(distances.other).all():
        return None
    if (distances.other <= ROUNDING).all():  # a collapsed model
        return None
    distance = threshold_at(distances.other, fpir)
    share = fpir
    if distance < 0:
        distance, share = 0.0, float((distances.other <= 0).mean())
    low, high = _interval(distances, same_person.query_persons, distance, fpir)
    tpir = float((mated <= distance).mean())
    people = len(np.unique(same_person.query_persons))
    sizes = len(distances.other), people, len(same_person.gallery_persons)
    return Threshold(distance, low, high, share, tpir, *sizes)


def _interval(distances: OpenSetDistances, persons: np.ndarray, distance: float, fpir: float) -> tuple[float, float]:
    """Returns the ends of the 95 % interval of a threshold at this distance."""
    positive = distances.other <= distance
    counts = np.unique(persons, return_counts=True)[1]
    if len(counts) < 2:
        return 0.0, FARTHEST
    share, searches = float(positive.mean()), len(positive)
    size = _error(persons, distances.other_person, positive).effective_size(share, counts)

    def holds(number: int) -> bool:
        return holds_share(fpir, number / searches, size)

    # All numbers of positives that agree with fpir, around the expected one.
    expected = share_of(fpir, searches)
    fewest = bisect_left(range(expected), True, key=holds)
    most = expected + bisect_left(range(expected + 1, searches + 1), True, key=lambda number: not holds(number))
    # Each number holds from the distance of its last positive to that of the next.
    ends = np.concatenate([[0], np.sort(distances.other), [FARTHEST]])
    return float(ends[fewest]), min(float(ends[most + 1]), FARTHEST)


def _error(persons: np.ndarray, found: np.ndarray, positive: np.ndarray) -> Error:
    """Returns the error of the share of positive searches (Q,) bool.

    persons and found are the people (Q,) that a search is for and that it finds. Searches are dependent if they share
    either person; if that gives a smaller error, only those for the same person are.

    Source: Aronow, Samii and Assenova 2015 (variance of dyads).
    """
    who = np.unique(np.concatenate([persons, found[positive]]), return_inverse=True)[1]
    searcher, seen = who[: len(persons)], who[len(persons) :]
    counts, residuals = np.bincount(searcher), positive - positive.mean()
    searching = counts > 0
    alone = people_error(np.bincount(searcher, positive)[searching], counts[searching])
    of_person = np.bincount(who, np.concatenate([residuals, residuals[positive]]))
    # Positive searches that share both people were counted twice.
    pairs = np.sort(np.stack([searcher[positive], seen]), axis=0)
    twice = np.bincount(np.unique(pairs, axis=1, return_inverse=True)[1], residuals[positive])
    shared = float((of_person**2).sum() - (twice**2).sum()) / len(positive) ** 2
    people = int(searching.sum())
    return Error(max(alone.variance, shared * people / (people - 1)), alone.freedom)
