"""The threshold of a search: the largest distance of an accepted image, chosen on val, stored with the checkpoint."""

import os
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils.hub import cached_file

from ..retrieval.distances import Features, distance_blocks
from ..retrieval.matching import SamePerson
from ..utils.errors import UserError
from ..utils.json_files import Format, read_json
from ..utils.report_formats import CalibrationValues, ThresholdsFile
from .calibration import Calibration
from .report import write_json
from .statistics import Error, holds_share, people_error
from .verification import OpenSetDistances, open_set_distances, share_of, threshold_at

THRESHOLD_FILE = "threshold.json"
FARTHEST = 2.0  # the largest cosine distance
# A checkpoint without the file, and a Hub that cannot be reached, are no errors.
QUIET = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}


@dataclass(frozen=True)
class Threshold:
    """The largest accepted cosine distance of a search, and its rates on the val split.

    In a larger gallery the same distance gives more false positives.

    Args:
        distance (`float`): the largest accepted distance.
        low (`float`): low end of the 95 % interval of the distance for other people; 0 if val is too small for one.
        high (`float`): high end of the interval; 2 if val is too small for one.
        fpir (`float`): share of searches for a person who is not in the gallery that find another person.
        tpir (`float`): share of searches for a person in the gallery that find that person.
        searches (`int`): number of searches.
        people (`int`): number of people among the queries.
        gallery (`int`): number of gallery images.
        metric (`str`): the distance.
        calibration (`Calibration`, *optional*): what distances mean, for groups of unknown people; None if val is too
            small, and in files of older versions.
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
    calibration: Calibration | None = None


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
        finds another person at distance 0. If many searches do (copies under two names), the threshold is 0, with the
        rate that it has.

    Raises:
        UserError: if fpir is not between 0 and 1.
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


def save_thresholds(folder: str | os.PathLike[str], thresholds: Mapping[str, Threshold]) -> None:
    """Writes the threshold of each named feature as `threshold.json` into a checkpoint's folder."""
    write_json(Path(folder) / THRESHOLD_FILE, {name: asdict(threshold) for name, threshold in thresholds.items()})


def load_thresholds(checkpoint: str, revision: str | None = None) -> dict[str, Threshold]:
    """Reads the thresholds of a checkpoint, a folder or a name on the Hub, by feature; empty if it has no file.

    Raises UserError if the file is not valid: NaN, a negative distance, or an interval whose ends are swapped.
    """
    path = cached_file(checkpoint, THRESHOLD_FILE, revision=revision, **QUIET)
    if path is None:
        return {}
    try:
        stored = read_json(path, ThresholdsFile, remedy="train again, or remove the file")
    except UserError as error:
        raise UserError(f"{path}: holds no thresholds ({str(error).removeprefix(f'{path}: ')})") from error
    return {
        name: Threshold(**_values(values, Threshold) | {"calibration": _calibration(values.calibration)})
        for name, values in stored.items()
    }


def _values(stored: Format, kind: type[Any]) -> dict[str, Any]:
    """Returns the values of a stored object for the fields of a dataclass."""
    return {field.name: getattr(stored, field.name) for field in fields(kind)}


def _calibration(stored: CalibrationValues | None) -> Calibration | None:
    """Returns a stored calibration; JSON has lists where the dataclass has tuples."""
    if stored is None:
        return None
    values = _values(stored, Calibration)
    lists: dict[str, Any] = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
    return Calibration(**values | lists)
