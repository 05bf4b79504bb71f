"""How sure a mean over queries is, where people are the independent draws and each brings all its queries.

An interval and a p-value both come from one `Error`, so that an interval leaves out 0 exactly where p is below its
level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from scipy.special import betainc, betaincinv, stdtr, stdtrit

# Fractions of 1: as far apart are numbers that are equal but for the order of their sums.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Error:
    """The variance of a mean, and the degrees of freedom of that variance."""

    variance: float
    freedom: float

    def interval(self, mean: float, confidence: float = 0.95) -> tuple[float, float]:
        """Low and high end of Student's interval around the mean."""
        half = float(stdtrit(self.freedom, (1 + confidence) / 2)) * self.variance**0.5
        return mean - half, mean + half

    def p_value(self, mean: float) -> float:
        """Two-sided, of a true mean of 0; without any variance 1 for a mean of 0, else 0."""
        if self.variance == 0:
            return float(mean == 0)
        return float(2 * stdtr(self.freedom, -abs(mean) / self.variance**0.5))

    def effective_size(self, share: float, counts: np.ndarray, confidence: float = 0.95) -> float:
        """As many independent draws of 0 or 1 give a mean that is this sure, the degrees of freedom counted in.

        counts: (I,) queries of each person. Never more than there are queries; without any variance as many as there
        are people, the fewer the more unequal their counts. Source: Korn and Graubard 1998.
        """
        if self.variance == 0:
            return float(counts.sum() ** 2 / (counts**2).sum())
        level = (1 + confidence) / 2
        shrunk = (NormalDist().inv_cdf(level) / float(stdtrit(self.freedom, level))) ** 2
        return shrunk * min(share * (1 - share) / self.variance, float(counts.sum()))


def people_error(sums: np.ndarray, counts: np.ndarray) -> Error:
    """The error of the mean sum(sums) / sum(counts), from how far people are from it.

    sums: (I,) each person's sum over its queries, counts: (I,) how many these are; I at least 2. With the weights
    w = counts / sum(counts), the variance is that of sum(w_i m_i), m_i the persons' means, from residuals that are
    corrected so that it has no bias where people differ by equal variances; the degrees of freedom are Satterthwaite's
    under the same variances: I - 1 with equal counts, fewer with unequal ones, as few people then decide.
    Source: Bell and McCaffrey 2002 (CR2), Pustejovsky and Tipton 2018.
    """
    weights = counts / counts.sum()
    concentration = float((weights**2).sum())
    residuals = (sums - sums.sum() * weights) / counts.sum()
    residuals[np.abs(residuals) <= ROUNDING * weights] = 0
    # Under variances of 1: a residual's variance is w_i^2 * own_i, and i's and j's covariance w_i w_j * (c_i + c_j).
    own, shared = 1 - 2 * weights + concentration, concentration / 2 - weights
    variance = float((residuals**2 / own).sum())
    scale = weights**2 / own
    squares = (scale**2 * (own**2 - 4 * shared**2)).sum()
    squares += 2 * scale.sum() * (scale * shared**2).sum() + 2 * (scale * shared).sum() ** 2
    return Error(variance, float((scale * own).sum() ** 2 / squares))


def combined(errors: Sequence[Error]) -> Error:
    """The error of a mean whose independent parts have these errors.

    Its degrees of freedom are the harmonic mean of theirs, weighted by their variances. Satterthwaite's, weighted by
    the squares, are more: with a large part of 2 degrees of freedom and a small one of many, 95 % intervals by these
    cover 92 %, and by the mean 94 to 97 %; with a part of one degree of freedom no less than 91 %.
    """
    variance = sum(error.variance for error in errors)
    if variance == 0:
        return errors[0]
    return Error(variance, variance / sum(error.variance / error.freedom for error in errors))


def share_interval(share: float, size: float, confidence: float = 0.95) -> tuple[float, float]:
    """Low and high end around a share of so many independent draws, which may be a fraction, within 0 and 1.

    Source: Clopper and Pearson 1934.
    """
    hits, tail = share * size, (1 - confidence) / 2
    low = float(betaincinv(hits, size - hits + 1, tail)) if share > 0 else 0.0
    high = float(betaincinv(hits + 1, size - hits, 1 - tail)) if share < 1 else 1.0
    return low, high


def holds_share(truth: float, share: float, size: float, confidence: float = 0.95) -> bool:
    """Whether `share_interval` holds this truth, strictly between 0 and 1."""
    hits, tail = share * size, (1 - confidence) / 2
    above = share <= 0 or betainc(hits, size - hits + 1, truth) >= tail
    below = share >= 1 or betainc(hits + 1, size - hits, truth) <= 1 - tail
    return above and below
