"""Calibration: from distances to the probability that two crops, or two groups of crops, are one person.

It is fitted on labelled people, such as those of val, and stored with the checkpoint; see `calibration_fit.py`.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Calibration:
    """What distances mean for one feature of a model.

    Args:
        distances (`tuple[float, ...]`): ascending cosine distances of two crops.
        log_ratios (`tuple[float, ...]`): at each, the natural logarithm of how much more often two crops of one person
            have this distance than two crops of two people; it never increases.
        merge (`tuple[float, ...]`): log odds that two groups are one person: a constant, and factors of the four
            columns of `Groups.evidence`.
        least (`float`): log odds from which groups are merged, the suggested threshold.
        precision (`float`): pairwise precision of the groups at this threshold, the mean over galleries drawn of val.
        recall (`float`): pairwise recall, the same mean.
        people (`int`): number of people.
        images (`int`): number of crops.
    """

    distances: tuple[float, ...]
    log_ratios: tuple[float, ...]
    merge: tuple[float, ...]
    least: float
    precision: float
    recall: float
    people: int
    images: int

    def merge_score(self, evidence: np.ndarray) -> np.ndarray:
        """Returns the log odds (n,) that two groups are one person, from the evidence (n, 4) of `Groups.evidence`."""
        return log_odds(self.merge, evidence)

    def log_ratio(self, distance: float | np.ndarray) -> np.ndarray:
        """Returns how much more often, as a logarithm, crops of one person have this distance than crops of two.

        Log odds that two crops show one person are this and a constant, the logarithm of the odds before the distance
        is known. Beyond the smallest and the largest distance of the table it is that of the last one.
        """
        return np.asarray(np.interp(distance, self.distances, self.log_ratios))

    def pair_probability(self, distance: float | np.ndarray, prior: float = 0.5) -> np.ndarray:
        """Returns the probability that two crops show one person.

        Args:
            distance (`float` or `np.ndarray`): Their cosine distance.
            prior (`float`, defaults to 0.5): The probability before the distance is known: 0.5 for two crops that a
                human compares; (n - 1) / (N - 1) for two of N crops with n of each person.
        """
        return probability(self.log_ratio(distance) + np.log(prior) - np.log1p(-prior))


def probability(log_odds: float | np.ndarray) -> np.ndarray:
    """Converts log odds to a probability."""
    return np.asarray(0.5 + 0.5 * np.tanh(np.asarray(log_odds) / 2))


def log_odds(merge: tuple[float, ...], evidence: np.ndarray) -> np.ndarray:
    """Returns log odds (n,), column by column: a sum of a product would depend on the number of rows."""
    odds = np.full(len(evidence), merge[0])
    for column, factor in enumerate(merge[1:]):
        odds += factor * evidence[:, column]
    return odds
