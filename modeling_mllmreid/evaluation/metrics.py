"""Retrieval metrics: mAP, CMC and mINP from the ranks of the matches, their curves, and single-gallery-shot CMC."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..retrieval.distances import distance_blocks
from ..retrieval.match_ranks import match_ranks
from ..retrieval.matching import Ids, SamePerson
from ..retrieval.points import Features
from ..retrieval.ranking import Blocks, no_match_error, parts, query_distances
from ..utils.errors import UserError

AP_RULES = ("step", "trapezoid")


@dataclass(frozen=True)
class RetrievalMetrics:
    """Metrics of a retrieval run. The averages are fractions of 1, over the queries that have a match.

    Args:
        mAP (`float`): mean average precision; NaN if no query has a match.
        cmc (`dict[int, float]`): maps a rank k to the share of queries with a match among their k nearest images.
        mINP (`float`): mean inverse negative penalty; NaN if no query has a match.
        num_queries (`int`): number of queries, Q.
        num_valid (`int`): number of queries that have a match.
        average_precision (`np.ndarray`): (Q,) float64, per query; NaN if the query has no match.
        inverse_negative_penalty (`np.ndarray`): (Q,) float64, per query; NaN if the query has no match.
        match_ranks (`tuple[np.ndarray, ...]`): for each query the ranks of its matches, (m,) int64, ascending from 1.
            All other fields are computed from them.

    Example:
        >>> import numpy as np
        >>> from modeling_mllmreid import evaluate_retrieval
        >>> features = np.eye(3, dtype=np.float32)
        >>> metrics = evaluate_retrieval(features[:2], features, [1, 2], [1, 2, 2])
        >>> metrics.to_dict()["rank1"], metrics.num_valid, metrics.match_ranks[0].tolist()
        (1.0, 2, [1])

    Source: Zheng et al. 2015 (mAP, CMC); Ye et al. 2021 (mINP).
    """

    mAP: float  # noqa: N815 - the field's name for it
    cmc: dict[int, float]
    mINP: float  # noqa: N815
    num_queries: int
    num_valid: int
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray
    match_ranks: tuple[np.ndarray, ...]

    def __repr__(self) -> str:
        """One line without the values of each query."""
        ranks = ", ".join(f"rank{k}={share:.4f}" for k, share in self.cmc.items())
        return f"RetrievalMetrics(mAP={self.mAP:.4f}, {ranks}, mINP={self.mINP:.4f}, {self.num_valid:,} queries)"

    @property
    def first_match_rank(self) -> np.ndarray:
        """The rank of each query's first match, (Q,) float64; NaN if the query has no match."""
        return np.array([ranks[0] if len(ranks) else np.nan for ranks in self.match_ranks], dtype=np.float64)

    def to_dict(self) -> dict[str, float | int | None]:
        """Returns the averages and counts under flat keys (mAP, rank1, ..., mINP); None replaces NaN, as JSON needs."""
        averages = {"mAP": self.mAP, **{f"rank{rank}": share for rank, share in self.cmc.items()}, "mINP": self.mINP}
        numbers = {key: None if np.isnan(value) else value for key, value in averages.items()}
        return {**numbers, "num_queries": self.num_queries, "num_valid": self.num_valid}


def evaluate_retrieval(
    query_features: Features,
    gallery_features: Features,
    query_person_ids: Ids,
    gallery_person_ids: Ids,
    query_camera_ids: Ids | None = None,
    gallery_camera_ids: Ids | None = None,
    *,
    metric: str = "cosine",
    ranks: Sequence[int] = (1, 5, 10),
    ap: str = "step",
    block_size: int | None = None,
) -> RetrievalMetrics:
    """Computes mAP, CMC and mINP of query features against gallery features.

    Gallery images of the query's person AND camera are dropped before ranking. Among equal distances, images of other
    people rank before the matches. Queries without a match are counted, and left out of the averages. Distances are
    float32 and computed in blocks, sums are float64.

    Args:
        query_features (`np.ndarray` or `Tensor`): (Q, D), any float type, on CPU or GPU.
        gallery_features (`np.ndarray` or `Tensor`): (G, D), as the queries.
        query_person_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`): (Q,) person ids.
        gallery_person_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`): (G,) person ids, numbered alike.
        query_camera_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`, *optional*): (Q,) camera ids; -1 is unknown
            and equals no camera. Without cameras no image is dropped.
        gallery_camera_ids (`Sequence[int | str]`, `np.ndarray` or `Tensor`, *optional*): (G,) camera ids.
        metric (`str`, defaults to `"cosine"`): `"cosine"` or `"euclidean"`.
        ranks (`Sequence[int]`, defaults to `(1, 5, 10)`): ranks of the CMC, from 1.
        ap (`str`, defaults to `"step"`): average precision as the mean of the precision at each match (`"step"`), or as
            the area that the original Market-1501 code computes (`"trapezoid"`).
        block_size (`int`, *optional*): queries per block of distances. By default a block takes about 48 MiB.

    Returns:
        `RetrievalMetrics`: the averages, and the values of each query.

    Raises:
        UserError: if ids do not fit the features, features are not finite, `metric` or `ap` is unknown, or no query
            has a match.

    Example:
        >>> import numpy as np
        >>> from modeling_mllmreid import evaluate_retrieval
        >>> rng = np.random.default_rng(0)
        >>> person_ids = np.repeat(np.arange(10), 4)
        >>> features = rng.normal(size=(10, 16))[person_ids] + rng.normal(size=(40, 16))
        >>> camera_ids = np.arange(40) % 4
        >>> metrics = evaluate_retrieval(features, features, person_ids, person_ids, camera_ids, camera_ids)
        >>> f"mAP {metrics.mAP:.1%}, Rank-1 {metrics.cmc[1]:.1%}, mINP {metrics.mINP:.1%}"
        'mAP 66.4%, Rank-1 80.0%, mINP 44.2%'

    Source: Zheng et al. 2015 (mAP, CMC); Ye et al. 2021 (mINP).
    """
    blocks = distance_blocks(query_features, gallery_features, metric=metric, block_size=block_size)
    for name, ids, features in (
        ("query_person_ids", query_person_ids, query_features),
        ("gallery_person_ids", gallery_person_ids, gallery_features),
    ):
        if len(ids) != len(features):
            raise UserError(f"{name}: {len(ids)} ids for {len(features)} features: give one per image")
    return metrics_from_blocks(
        blocks,
        SamePerson(query_person_ids, gallery_person_ids, query_camera_ids, gallery_camera_ids),
        ranks=ranks,
        ap=ap,
    )


def metrics_from_blocks(
    blocks: Blocks,
    same_person: SamePerson,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    ap: str = "step",
) -> RetrievalMetrics:
    """Computes the metrics of `evaluate_retrieval` from distances that are already there, block by block.

    Args:
        blocks (`Iterable[tuple[slice, np.ndarray | Tensor]]`): a slice of the queries and their distances (queries, G);
            smaller is nearer. Each query comes once, in any order. A whole matrix is one block:
            `[(slice(0, len(matrix)), matrix)]`. Distances are read as float32; the blocks are not changed.
        same_person (`SamePerson`): the matching rule of these queries and this gallery.
        ranks (`Sequence[int]`, defaults to `(1, 5, 10)`): ranks of the CMC, from 1.
        ap (`str`, defaults to `"step"`): `"step"` or `"trapezoid"`, see `evaluate_retrieval`.

    Returns:
        `RetrievalMetrics`: the averages, and the values of each query.

    Raises:
        UserError: if distances are NaN, a block has the wrong shape, a query is missing or comes twice, or no query has
            a match.

    Example:
        >>> import numpy as np
        >>> from modeling_mllmreid import SamePerson, metrics_from_blocks
        >>> distances = np.array([[0.1, 0.4, 0.2], [0.3, 0.9, 0.5]])
        >>> rule = SamePerson(query_person_ids=[1, 2], gallery_person_ids=[1, 1, 2])
        >>> metrics = metrics_from_blocks([(slice(0, 2), distances)], rule)
        >>> round(metrics.mAP, 3), metrics.cmc[1]
        (0.667, 0.5)

    Source: Zheng et al. 2015 (mAP, CMC); Ye et al. 2021 (mINP).
    """
    if ap not in AP_RULES:
        raise UserError(f"ap: unknown {ap!r}: use one of {', '.join(AP_RULES)}")
    if any(rank < 1 for rank in ranks):
        raise UserError(f"ranks: {tuple(ranks)} holds a rank below 1: ranks count from 1")
    count = len(same_person.query_persons)
    query_ranks: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * count
    precision = np.full(count, np.nan)
    for part in parts(blocks, same_person):
        found = match_ranks(part)
        query_ranks[part.queries] = found.by_query()
        precision[part.queries] = average_precisions(*found, rule=ap)
        del part  # frees its block before the next one is computed
    if np.isnan(precision).all():
        raise no_match_error(same_person)
    return averages(query_ranks, precision, ranks=ranks)


def averages(query_ranks: Sequence[np.ndarray], precision: np.ndarray, *, ranks: Iterable[int]) -> RetrievalMetrics:
    """Averages the queries' values.

    Args:
        query_ranks (`Sequence[np.ndarray]`): for each of Q queries the ascending ranks (m,) of its matches.
        precision (`np.ndarray`): (Q,) average precision; NaN if the query has no match.
        ranks (`Iterable[int]`): ranks of the CMC.

    Returns:
        `RetrievalMetrics`: the averages, and the values of each query.
    """
    penalty = np.array([len(ranks) / ranks[-1] if len(ranks) else np.nan for ranks in query_ranks])
    first = np.array([ranks[0] if len(ranks) else np.inf for ranks in query_ranks])
    valid = np.isfinite(first)
    return RetrievalMetrics(
        mAP=_mean(precision[valid]),
        cmc={int(rank): _mean(first[valid] <= rank) for rank in ranks},
        mINP=_mean(penalty[valid]),
        num_queries=len(query_ranks),
        num_valid=int(valid.sum()),
        average_precision=precision,
        inverse_negative_penalty=penalty,
        match_ranks=tuple(query_ranks),
    )


def average_precisions(ranks: np.ndarray, counts: np.ndarray, *, rule: str = "step") -> np.ndarray:
    """Computes the average precision of each query from the ranks of all its matches.

    Args:
        ranks (`np.ndarray`): (T,) ranks from 1, query after query, ascending in each.
        counts (`np.ndarray`): (Q,) number of matches of each query.
        rule (`str`, defaults to `"step"`): `"step"` is the mean of the precision at each match. `"trapezoid"` also
            averages it with the precision one rank earlier, which is 1 before the first rank.

    Returns:
        `np.ndarray`: (Q,) float64, as fractions of 1; NaN without a match.

    Source: compute_AP.m of Zheng et al. 2015 (`"trapezoid"`).
    """
    found = counts > 0
    starts = (np.cumsum(counts) - counts)[found]
    matches = np.arange(1, len(ranks) + 1) - np.repeat(starts, counts[found])
    precision = matches / ranks
    if rule == "trapezoid":
        before = np.where(ranks > 1, (matches - 1) / np.maximum(ranks - 1, 1), 1.0)
        precision = (precision + before) / 2
    average = np.full(len(counts), np.nan)
    if len(starts):
        average[found] = np.add.reduceat(precision, starts) / counts[found]
    return average


def _mean(values: np.ndarray) -> float:
    """Returns the float64 mean; NaN without values."""
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")


def cmc_curve(metrics: RetrievalMetrics, max_rank: int = 50) -> np.ndarray:
    """Computes the CMC curve over the queries that have a match.

    Args:
        metrics (`RetrievalMetrics`): the result of an evaluation.
        max_rank (`int`, defaults to 50): the last rank of the curve.

    Returns:
        `np.ndarray`: (max_rank,) share of queries with a match at or before each rank.

    Source: Gray, Brennan and Tao 2007.
    """
    first = metrics.first_match_rank
    first = first[~np.isnan(first)]
    curve: np.ndarray = (first[:, None] <= np.arange(1, max_rank + 1)).mean(0)
    return curve


def precision_recall_curve(metrics: RetrievalMetrics, levels: int = 101) -> tuple[np.ndarray, np.ndarray]:
    """Computes the interpolated precision-recall curve, averaged over the queries that have a match.

    The interpolated precision at a recall is the highest precision at that recall or a higher one.

    Args:
        metrics (`RetrievalMetrics`): the result of an evaluation.
        levels (`int`, defaults to 101): number of recall levels from 0 to 1.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: recall (levels,) and precision (levels,).

    Source: Manning, Raghavan and Schuetze 2008, section 8.4.
    """
    recall = np.linspace(0, 1, levels)
    total = np.zeros(levels)
    for ranks in metrics.match_ranks:
        if len(ranks):
            matches = np.arange(1, len(ranks) + 1)
            highest = np.maximum.accumulate((matches / ranks)[::-1])[::-1]
            # The first match that reaches the recall. The small margin keeps rounding from skipping one.
            total += highest[np.searchsorted(matches / len(ranks), recall - 1e-12)]
    return recall, total / metrics.num_valid


def single_shot_cmc(
    blocks: Blocks,
    same_person: SamePerson,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    repeats: int = 10,
    seed: int = 0,
) -> dict[int, float]:
    """Computes the CMC with one random gallery image of each person, averaged over the queries that have a match.

    For each query and repeat, one gallery image of every person is drawn among those that the matching rule keeps. The
    rank is that of the query's person; among equal distances, other people rank first. The draws depend on the seed and
    the query's index, not on the block size.

    Args:
        blocks (`Iterable[tuple[slice, np.ndarray | Tensor]]`): distances, as in `metrics_from_blocks`.
        same_person (`SamePerson`): the matching rule of these queries and this gallery.
        ranks (`Sequence[int]`, defaults to `(1, 5, 10)`): ranks of the CMC, from 1.
        repeats (`int`, defaults to 10): draws for each query.
        seed (`int`, defaults to 0): seed of the draws.

    Returns:
        `dict[int, float]`: maps a rank to the share of draws with the match at or before it.

    Raises:
        UserError: as `metrics_from_blocks`.

    Source: Li et al. 2014 (CUHK03).
    """
    by_person = np.argsort(same_person.gallery_persons, kind="stable")
    hits = {int(rank): 0 for rank in ranks}
    valid = 0
    for index, distances in query_distances(blocks, same_person):
        same, dropped = same_person.gallery_images(index)
        matches = same[~dropped]
        if not len(matches):
            continue
        valid += 1
        kept = by_person[~np.isin(by_person, same[dropped])]
        persons = same_person.gallery_persons[kept]
        first = np.flatnonzero(np.diff(persons, prepend=persons[0] - 1))
        counts = np.diff(first, append=len(kept))
        chance = np.random.default_rng([seed, index]).random((repeats, len(first)))
        drawn = distances[kept[first + (chance * counts).astype(np.int64)]]
        own = int(np.searchsorted(persons[first], same_person.query_persons[index]))
        drawn_rank = (drawn <= drawn[:, [own]]).sum(1)  # counts the match itself: ranks start at 1
        for rank in hits:
            hits[rank] += int((drawn_rank <= rank).sum())
    if not valid:
        raise no_match_error(same_person)
    return {rank: count / (valid * repeats) for rank, count in hits.items()}
