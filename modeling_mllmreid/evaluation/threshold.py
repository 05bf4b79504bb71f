"""The distance beyond which an image is nobody's match: chosen on validation people, stored beside the checkpoint."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..retrieval.distances import Features, distance_blocks
from ..retrieval.ranking import SamePerson
from .open_set import open_set_distances, share_of, threshold_at
from .report import write_json
from .rows import no_match_error

THRESHOLD_FILE = "threshold.json"


@dataclass(frozen=True)
class Threshold:
    """A decision threshold and what it was worth on val.

    distance: the largest accepted one, of this metric; low and high: its percentile interval, `confidence` of which
    hold the truth. fpir: the wanted share of searches for somebody absent that find an image all the same; tpir: the
    share of searches for somebody present that name the right person. num_searches: the searches that it was chosen
    on; num_gallery: the images they looked through. A larger gallery has a larger FPIR at the same distance.
    """

    metric: str
    distance: float
    low: float
    high: float
    confidence: float
    fpir: float
    tpir: float
    num_searches: int
    num_gallery: int


def choose_threshold(
    query_features: Features,
    gallery_features: Features,
    same_person: SamePerson,
    *,
    fpir: float = 0.1,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Threshold:
    """The cosine distance at which the FPIR is the wanted one, from the parts of val alone.

    query_features: (Q, D); gallery_features: (G, D); same_person: their ids and cameras. The searches for somebody
    absent are all queries, each against the gallery without its own person. The interval is that of the distance over
    identities drawn with replacement, each with all its queries; the gallery stays as it is.
    Raises UserError for an FPIR outside 0 to 1, for fewer searches than measure it, and where no query has a match or
    the gallery shows nobody else.
    Source: Grother and Ngan 2014 (FPIR, TPIR); Field and Welsh 2007 (cluster bootstrap).
    """
    found = open_set_distances(distance_blocks(query_features, gallery_features), same_person)
    searches = len(found.other)
    if not share_of(fpir, searches):
        raise UserError(
            f"val has {searches} searches, too few for a threshold at FPIR {fpir:g}: take at least {np.ceil(1 / fpir):.0f}"
        )
    if np.isinf(found.other).all():
        raise UserError("val shows one person: a threshold needs at least two")
    mated = found.mate[~np.isnan(found.mate)]
    if not len(mated):
        raise no_match_error(same_person)
    distance = threshold_at(found.other, fpir)
    persons = same_person.query_persons
    of_person = [found.other[persons == person] for person in np.unique(persons)]
    rng = np.random.default_rng(seed)
    drawn = [
        threshold_at(np.concatenate([of_person[i] for i in rng.integers(len(of_person), size=len(of_person))]), fpir)
        for _ in range(resamples)
    ]
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Threshold(
        metric="cosine",
        distance=distance,
        low=float(low),
        high=float(high),
        confidence=confidence,
        fpir=fpir,
        tpir=float((mated <= distance).mean()),
        num_searches=searches,
        num_gallery=len(same_person.gallery_persons),
    )


def save_thresholds(folder: str | os.PathLike[str], thresholds: Mapping[str, Threshold]) -> None:
    """Writes `threshold.json` with a threshold for each test feature into a checkpoint's folder."""
    write_json(Path(folder) / THRESHOLD_FILE, {feature: asdict(row) for feature, row in thresholds.items()})


def load_thresholds(path: str | os.PathLike[str]) -> dict[str, Threshold]:
    """Reads a file of `save_thresholds`: test feature -> threshold. Raises UserError where it is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        return {feature: Threshold(**row) for feature, row in content.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a file of thresholds ({error}): remove it, or train again") from error
