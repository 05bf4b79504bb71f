"""Fusion of distance and pair score: the log odds that two crops of a shortlist are one person.

It is fitted on labelled people, such as those of val, and stored with the threshold; see `pair_fusion_fit.py`.
"""

from dataclasses import dataclass

import numpy as np

from .calibration import probability

BINS = 15


@dataclass(frozen=True)
class PairFusion:
    """Log odds of a pair: constant + distance * its cosine distance + score * its pair score.

    They hold for the pairs of a query and its nearest gallery images. In a gallery of twice the size twice as many
    images of other people have the same distance and score, and as many of the query's person: the odds are half as
    large. A smaller gallery does not raise them: it has fewer images of the query's person too, or none. The order does
    not depend on it.

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
        gallery (`int`): number of gallery images of val.
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
    gallery: int
    ece_before: float
    ece_after: float

    def log_odds(self, distances: np.ndarray, scores: np.ndarray, gallery: int) -> np.ndarray:
        """Returns the log odds of pairs.

        Args:
            distances (`np.ndarray`): cosine distances, of any shape.
            scores (`np.ndarray`): pair scores of the same shape.
            gallery (`int`): number of gallery images that the pairs were found among. Each person is expected to have
                about as many as in val.

        Returns:
            `np.ndarray`: float64, of the same shape.
        """
        constant = self.constant - float(np.log(max(gallery / self.gallery, 1)))
        odds: np.ndarray = constant + self.distance * distances.astype(np.float64) + self.score * scores
        return odds

    def pair_probability(self, distances: np.ndarray, scores: np.ndarray, gallery: int) -> np.ndarray:
        """Returns the probability that the crops of each pair show one person; arguments as in `log_odds`."""
        return probability(self.log_odds(distances, scores, gallery))


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
