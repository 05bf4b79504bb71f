"""Unknown people: groups of crops that may be one person, and groups that a human may join."""

from dataclasses import dataclass

import numpy as np

from ..evaluation.calibration import Calibration, probability
from ..retrieval.merging import Groups, merge_groups
from ..retrieval.neighbourhoods import find_candidates
from ..utils.errors import UserError
from .constraints import Constraints, Rules

# Pairs of groups below this probability are not suggested to a human.
SUGGESTED = 0.5
# Crops at this distance or nearer may be one picture, see `duplicates.py`.
CLOSE = 0.1
NO_DECISIONS = Rules()


@dataclass(frozen=True)
class Crops:
    """What is known about N crops.

    Args:
        ids (`np.ndarray`): (N,) distinct texts. They decide between equal distances, so that the order of the crops has
            no influence.
        features (`np.ndarray`): (N, D) float32, L2-normalised.
        camera_id (`np.ndarray`): (N,) int64; -1 is unknown.
        time (`np.ndarray`): (N,) datetime64[us] in UTC; NaT is unknown.
        track_id (`np.ndarray`): (N,) int64; -1 is unknown. A number belongs to one track of its camera.
    """

    ids: np.ndarray
    features: np.ndarray
    camera_id: np.ndarray
    time: np.ndarray
    track_id: np.ndarray

    def __post_init__(self) -> None:
        lengths = {len(getattr(self, name)) for name in ("features", "camera_id", "time", "track_id")}
        if lengths != {len(self.ids)}:
            raise UserError(
                f"{len(self.ids)} ids, but {sorted(lengths)} values of the other columns: give one per crop"
            )
        if len(np.unique(self.ids.astype(str))) != len(self.ids):
            raise UserError("ids: one comes twice: give every crop its own id")


@dataclass(frozen=True)
class SuggestedMerge:
    """Two groups that may be one person.

    Args:
        first (`int`): label of a group.
        second (`int`): label of the other, which is larger.
        confidence (`float`): calibrated probability that both are one person.
    """

    first: int
    second: int
    confidence: float


@dataclass(frozen=True)
class UnknownPeople:
    """The result of `find_groups`.

    Args:
        labels (`np.ndarray`): (N,) int64 the group of each crop; the groups are numbered from 0 by their smallest ids.
        merges (`list[SuggestedMerge]`): pairs of groups for a human, the most likely first.
        close (`list[tuple[str, str]]`): ids of pairs of crops that may be one picture, the nearest first.
    """

    labels: np.ndarray
    merges: list[SuggestedMerge]
    close: list[tuple[str, str]]


def find_groups(
    crops: Crops, calibration: Calibration, rules: Rules = NO_DECISIONS, *, confidence: float | None = None
) -> UnknownPeople:
    """Groups crops that are probably one person.

    Crops of one track or of a decision start in one group. The two groups that are the most likely to be one person are
    merged, again and again, until the probability is below the threshold; groups with two crops that are two people are
    never merged. The probability is that of the calibration for the mean distance of the two groups, the common
    neighbours of their crops, and their sizes. Time grows with N squared (distances), memory with N.

    Args:
        crops ([`Crops`]): The crops.
        calibration ([`Calibration`]): That of the model and feature of the crops.
        rules ([`Rules`]): Decisions, and the rule of cameras and times.
        confidence (`float`, *optional*): Probability from which two groups are merged; by default the suggested
            threshold of the calibration.

    Returns:
        [`UnknownPeople`]

    Raises:
        UserError: Tracks and decisions contradict each other, a feature is not finite, or the confidence is not between
            0 and 1.
    """
    if confidence is not None and not 0 < confidence < 1:
        raise UserError(f"confidence {confidence}: give a probability between 0 and 1, such as 0.9")
    least = calibration.least if confidence is None else float(np.log(confidence) - np.log1p(-confidence))
    order = np.argsort(crops.ids.astype(str), kind="stable")
    ids, features = crops.ids[order], np.ascontiguousarray(crops.features[order], dtype=np.float32)
    constraints = Constraints(ids, crops.camera_id[order], crops.time[order], crops.track_id[order], rules)
    candidates = find_candidates(features)
    groups = Groups(features, candidates, constraints.start())

    def may_merge(first: int, second: int, score: float, evidence: np.ndarray) -> bool:
        return score >= least and constraints.conflict(groups.members[first], groups.members[second]) is None

    shown = min(least, float(np.log(SUGGESTED) - np.log1p(-SUGGESTED)))
    left = merge_groups(groups, calibration.merge_score, shown, may_merge)
    numbers = np.unique(groups.root, return_inverse=True)[1]
    firsts = {first: int(numbers[first]) for first in groups.members}
    merges = [
        SuggestedMerge(firsts[pair.first], firsts[pair.second], float(probability(pair.score)))
        for pair in left
        if constraints.conflict(groups.members[pair.first], groups.members[pair.second]) is None
    ]
    labels = np.empty(len(ids), np.int64)
    labels[order] = numbers
    near = np.flatnonzero(candidates.distance <= CLOSE)
    near = near[np.argsort(candidates.distance[near], kind="stable")]
    close = [(str(ids[candidates.first[pair]]), str(ids[candidates.second[pair]])) for pair in near]
    return UnknownPeople(labels, merges, close)
