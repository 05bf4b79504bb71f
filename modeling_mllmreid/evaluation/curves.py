"""Curves of a retrieval result, from the ranks of its matches: the same filter as its metrics."""

import numpy as np

from .metrics import RetrievalMetrics


def cmc_curve(metrics: RetrievalMetrics, max_rank: int = 50) -> np.ndarray:
    """The share of queries with a match at or before ranks 1 to max_rank, (max_rank,); over queries with a match.

    Source: Gray, Brennan and Tao 2007.
    """
    first = metrics.first_match_rank
    first = first[~np.isnan(first)]
    return (first[:, None] <= np.arange(1, max_rank + 1)).mean(0)


def precision_recall_curve(metrics: RetrievalMetrics, levels: int = 101) -> tuple[np.ndarray, np.ndarray]:
    """(recall (levels,), precision (levels,)): interpolated precision, averaged over the queries with a match.

    The interpolated precision at a recall is the highest at that recall or a higher one.
    Source: Manning, Raghavan and Schuetze 2008, section 8.4.
    """
    recall = np.linspace(0, 1, levels)
    total = np.zeros(levels)
    for ranks in metrics.match_ranks:
        if len(ranks):
            found = np.arange(1, len(ranks) + 1)
            highest = np.maximum.accumulate((found / ranks)[::-1])[::-1]
            # The first match at which the recall is reached; a hair less, so that rounding does not skip one.
            total += highest[np.searchsorted(found / len(ranks), recall - 1e-12)]
    return recall, total / metrics.num_valid
