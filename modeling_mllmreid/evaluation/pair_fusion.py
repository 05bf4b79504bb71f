"""Fusion of distance and pair score: the log odds that two crops of a shortlist are one person.

It is fitted on the people of val and stored with the threshold; see `pair_fusion_fit.py`.
"""

from dataclasses import dataclass

import numpy as np

from .calibration import probability

BINS = 15


@dataclass(frozen=True)
class PairFusion:
    """Log odds of a pair: constant + distance * its cosine distance + score * its pair score.

    They hold for the pairs of a query and its nearest gallery images in a gallery like that of val. In a larger gallery
    fewer of these are the same person, which lowers the constant; the order does not depend on it.

    Args:
        constant (`float`): log odds at distance 0 and score 0.
        distance (`float`): change with the distance, at most 0.
        score (`float`): change with the pair score, at least 0.
        share (`float`): share of the pair score in the change of the log odds over the pairs of val: 0 if the distance
            alone decides, 1 if the score alone does.
        low (`float`): low end of the 95 % interval of the share.
        high (`float`): high end of the interval.
        people (`int`): number of people among the queries.
        pairs (`int`): number of pairs.
        top (`int`): number of nearest gallery images of each query.
        ece_before (`float`): expected calibration error of the sigmoid of the pair score.
        ece_after (`float`): that of the fused probability, each on people that were left out of its fit.
    """

    constant: float
    distance: float
    score: float
    share: float
    low: float
    high: float
    people: int
    pairs: int
    top: int
    ece_before: float
    ece_after: float

    def log_odds(self, distances: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Returns the log odds, float64, of pairs with these cosine distances and pair scores, arrays of one shape."""
        odds: np.ndarray = self.constant + self.distance * distances.astype(np.float64) + self.score * scores
        return odds

    def pair_probability(self, distances: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Returns the probability that the crops of each pair show one person."""
        return probability(self.log_odds(distances, scores))


def calibration_error(probabilities: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Computes the expected calibration error: the mean distance of stated probability and observed share.

    Args:
        probabilities (`np.ndarray`): (N,) stated probabilities.
        right (`np.ndarray`): (N,) bool, what happened.
        bins (`int`, defaults to 15): number of bins of equal width; each counts by its number of pairs.

    Returns:
        `float`: 0 is best. With few pairs chance alone makes it larger.

    Source: Guo et al. 2017.
    """
    bin_of = np.minimum((probabilities * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(bin_of, weights=probabilities - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(probabilities))
