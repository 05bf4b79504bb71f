"""The distance beyond which a search says that nobody is found: chosen on val, kept beside the checkpoint."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from transformers.utils import cached_file

from ..errors import UserError
from ..formats import ThresholdsFile, read_json
from ..retrieval.distances import Features, distance_blocks
from ..retrieval.same_person import SamePerson
from .open_set import open_set_distances, share_of, threshold_at
from .report import write_json

THRESHOLD_FILE = "threshold.json"
RESAMPLES, CONFIDENCE = 2000, 0.95
# A checkpoint without the file, and a Hub out of reach, are no errors.
QUIET = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}


@dataclass(frozen=True)
class Threshold:
    """A cosine distance up to which a search names somebody, and what it gives on the val part it was chosen on.

    low, high: its 95 % bootstrap interval over val's people. fpir: the share of searches for somebody who is not in the
    gallery that name another. tpir: the share of searches for somebody who is there that name the right person.
    searches, people, gallery: numbers of searches, of people who were searched for, and of images searched through; in
    a larger gallery the same distance names another more often.
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
    query_features: Features, gallery_features: Features, same_person: SamePerson, *, fpir: float = 0.1, seed: int = 0
) -> Threshold | None:
    """The largest cosine distance at which at most the share fpir of non-mated searches names somebody.

    query_features: (Q, D), gallery_features: (G, D) of val. Searches are those of `open_set_from_blocks`. None where
    there are fewer than 1 / fpir searches, no match, only one person, or every search finds another person at 0.
    Where too many, but not all, do so (copies under two names), it is 0, with the share that this gives.
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
    people, codes = np.unique(same_person.query_persons, return_inverse=True)
    rows = [np.flatnonzero(codes == person) for person in range(len(people))]
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        some = np.concatenate([rows[person] for person in rng.integers(0, len(people), len(people))])
        drawn.append(threshold_at(distances.other[some], fpir))
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    tpir = float((mated <= distance).mean())
    sizes = len(distances.other), len(people), len(same_person.gallery_persons)
    return Threshold(distance, max(float(low), 0.0), max(float(high), 0.0), share, tpir, *sizes)


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
