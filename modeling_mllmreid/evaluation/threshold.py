"""The distance beyond which a search says that nobody is found: chosen on val, kept beside the checkpoint."""

import os
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from transformers.utils import cached_file

from ..retrieval.distances import Features, distance_blocks
from ..retrieval.matching import SamePerson
from ..utils.errors import UserError
from ..utils.formats import ThresholdsFile
from ..utils.json_files import read_json
from .report import write_json
from .statistics import Error, holds_share, people_error
from .verification import OpenSetDistances, open_set_distances, share_of, threshold_at

THRESHOLD_FILE = "threshold.json"
FARTHEST = 2.0  # the largest cosine distance
# A checkpoint without the file, and a Hub out of reach, are no errors.
QUIET = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}


@dataclass(frozen=True)
class Threshold:
    """A cosine distance up to which a search names somebody, and what it gives on the val part it was chosen on.

    low, high: the 95 % interval of the distance at which the rate wanted would hold on other people: 0 or 2 at an end
    that val is too small to say anything about. fpir: the share of searches for somebody who is not in the gallery that
    name another. tpir: the share of searches for somebody who is there that name the right person. searches, people,
    gallery: numbers of searches, of people who were searched for, and of images searched through; in a larger gallery
    the same distance names another more often.
    """

    distance: float
    low: float
    high: float
    fpir: float
    tpir: float
    searches: int
    people: int
    gallery: int
    metric: str = "cosine"


def choose_threshold(
    query_features: Features, gallery_features: Features, same_person: SamePerson, *, fpir: float = 0.1
) -> Threshold | None:
    """The largest cosine distance at which at most the share fpir of non-mated searches names somebody.

    query_features: (Q, D), gallery_features: (G, D) of val. Searches are those of `open_set_from_blocks`. None where
    there are fewer than 1 / fpir searches, no match, only one person, or every search finds another person at 0.
    Where too many, but not all, do so (copies under two names), it is 0, with the share that this gives.
    The interval holds the distances at which the share of false positives does not contradict fpir, as independent
    searches would, with as many of these as are as sure as val's: people are the draws, with all their searches, and
    two people who look alike find each other. With 12 people, or few who make most searches, it is wide.
    Raises UserError for an fpir outside 0 to 1.
    """
    distances = open_set_distances(distance_blocks(query_features, gallery_features), same_person)
    mated = distances.mate[~np.isnan(distances.mate)]
    if not share_of(fpir, len(distances.other)) or not len(mated) or np.isinf(distances.other).all():
        return None
    distance = threshold_at(distances.other, fpir)
    share = fpir
    if distance < 0:
        distance, share = 0.0, float((distances.other <= 0).mean())
    if share == 1:  # a collapsed model
        return None
    low, high = _interval(distances, same_person.query_persons, distance, fpir)
    tpir = float((mated <= distance).mean())
    people = len(np.unique(same_person.query_persons))
    sizes = len(distances.other), people, len(same_person.gallery_persons)
    return Threshold(distance, low, high, share, tpir, *sizes)


def _interval(distances: OpenSetDistances, persons: np.ndarray, distance: float, fpir: float) -> tuple[float, float]:
    """The ends of the 95 % interval of a threshold chosen at this distance."""
    positive = distances.other <= distance
    counts = np.unique(persons, return_counts=True)[1]
    if len(counts) < 2:
        return 0.0, FARTHEST
    share, searches = float(positive.mean()), len(positive)
    size = _error(persons, distances.other_person, positive).effective_size(share, counts)

    def holds(number: int) -> bool:
        return holds_share(fpir, number / searches, size)

    # All numbers of positives that fpir may give, around the one that it should give.
    expected = share_of(fpir, searches)
    fewest = bisect_left(range(expected), True, key=holds)
    most = expected + bisect_left(range(expected + 1, searches + 1), True, key=lambda number: not holds(number))
    # So many there are from the distance of the last of them up to that of the next.
    ends = np.concatenate([[0], np.sort(distances.other), [FARTHEST]])
    return float(ends[fewest]), min(float(ends[most + 1]), FARTHEST)


def _error(persons: np.ndarray, found: np.ndarray, positive: np.ndarray) -> Error:
    """The error of the share of positive searches (Q,) bool.

    persons, found: (Q,) who is searched for, two people or more, and who is found. A positive search depends on both,
    so searches count as dependent where they share a person; where that gives less, those for one person alone.
    Source: Aronow, Samii and Assenova 2015 (variance of dyads).
    """
    who = np.unique(np.concatenate([persons, found[positive]]), return_inverse=True)[1]
    searcher, seen = who[: len(persons)], who[len(persons) :]
    counts, residuals = np.bincount(searcher), positive - positive.mean()
    searching = counts > 0
    alone = people_error(np.bincount(searcher, positive)[searching], counts[searching])
    of_person = np.bincount(who, np.concatenate([residuals, residuals[positive]]))
    # Positive searches that share both their people were counted for each.
    pairs = np.sort(np.stack([searcher[positive], seen]), axis=0)
    twice = np.bincount(np.unique(pairs, axis=1, return_inverse=True)[1], residuals[positive])
    shared = float((of_person**2).sum() - (twice**2).sum()) / len(positive) ** 2
    people = int(searching.sum())
    return Error(max(alone.variance, shared * people / (people - 1)), alone.freedom)


def save_thresholds(folder: str | os.PathLike[str], thresholds: Mapping[str, Threshold]) -> None:
    """Writes the threshold of each named feature as `threshold.json` into a checkpoint's folder."""
    write_json(Path(folder) / THRESHOLD_FILE, {name: asdict(threshold) for name, threshold in thresholds.items()})


def load_thresholds(checkpoint: str, revision: str | None = None) -> dict[str, Threshold]:
    """The thresholds kept with a checkpoint, a folder or a name on the Hub, by feature; none where it has no file.

    Raises UserError for a file that does not hold them: NaN, negative distances, an interval upside down.
    """
    path = cached_file(checkpoint, THRESHOLD_FILE, revision=revision, **QUIET)
    if path is None:
        return {}
    try:
        stored = read_json(path, ThresholdsFile, remedy="train again, or remove the file")
    except UserError as error:
        raise UserError(f"{path}: holds no thresholds ({str(error).removeprefix(f'{path}: ')})") from error
    return {
        name: Threshold(**{field.name: getattr(values, field.name) for field in fields(Threshold)})
        for name, values in stored.items()
    }
