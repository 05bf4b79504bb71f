"""Retrieval metrics: mAP, CMC and mINP from the ranks of the matches, curves, and single-gallery-shot CMC."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..retrieval.distances import Features, distance_blocks
from ..retrieval.matching import Ids, SamePerson
from ..retrieval.ranking import Blocks, no_match_error, query_distances
from ..utils.errors import UserError

AP_RULES = ("step", "trapezoid")


@dataclass(frozen=True)
class RetrievalMetrics:
    """Averages over the queries that have a match, as fractions of 1; NaN where none has one.

    cmc: rank -> share of queries with a match at or before it. average_precision and inverse_negative_penalty: (Q,)
    float64, NaN where a query has no match. num_valid counts the queries that have one. match_ranks: for each query the
    ranks of its matches (m,) int64, ascending from 1, empty without a match; all else follows from them.
    """

    mAP: float  # noqa: N815 - the field's name for it
    cmc: dict[int, float]
    mINP: float  # noqa: N815
    num_queries: int
    num_valid: int
    average_precision: np.ndarray
    inverse_negative_penalty: np.ndarray
    match_ranks: tuple[np.ndarray, ...]

    @property
    def first_match_rank(self) -> np.ndarray:
        """The rank of each query's first match, (Q,) float64, NaN without one."""
        return np.array([ranks[0] if len(ranks) else np.nan for ranks in self.match_ranks], dtype=np.float64)

    def to_dict(self) -> dict[str, float | int | None]:
        """The averages and counts under flat keys (mAP, rank1, ..., mINP) for JSON, which has no NaN: None instead."""
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
    """mAP, CMC and mINP of query features (Q, D) against gallery features (G, D).

    Features are NumPy arrays or tensors of any float type, on CPU or GPU; distances are float32 (`distance_blocks`),
    sums float64. Gallery images with the query's person AND camera are dropped and hold no rank; camera -1 is unknown
    and equals no camera; without cameras nothing is dropped. Of equal distances the non-matches count as nearer.
    Queries without a match are counted and left out of the averages.
    ap: "step", the mean of the precision at each match, or "trapezoid", the original Market-1501 code's area.
    Raises UserError for ids that do not fit the features, an unknown metric or ap, and where no query has a match.
    Source: Zheng et al. 2015 (mAP, CMC), Ye et al. 2021 (mINP).
    """
    blocks = distance_blocks(query_features, gallery_features, metric=metric, block_size=block_size)
    for name, ids, features in (
        ("query_person_ids", query_person_ids, query_features),
        ("gallery_person_ids", gallery_person_ids, gallery_features),
    ):
        if len(ids) != len(features):
            raise UserError(f"{name}: {len(ids)} ids for {len(features)} rows of features: give one per image")
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
    """The metrics of `evaluate_retrieval` from blocks of distances, whoever makes them.

    blocks: (rows, distances (rows, G)) with each query row once, in any order; smaller is nearer, read as float32. A
    whole matrix is one block: `[(slice(0, len(matrix)), matrix)]`. The blocks are not changed.
    Raises UserError for NaN distances, a block of the wrong shape, rows that come twice or never, and where no query
    has a match.
    """
    if ap not in AP_RULES:
        raise UserError(f"ap: unknown {ap!r}: use one of {', '.join(AP_RULES)}")
    if any(rank < 1 for rank in ranks):
        raise UserError(f"ranks: {tuple(ranks)} holds a rank below 1: ranks count from 1")
    count = len(same_person.query_persons)
    ranks_of: list[np.ndarray] = [np.empty(0, dtype=np.int64)] * count
    for number, row in query_distances(blocks, same_person):
        ranks_of[number] = match_ranks(row, *same_person.of(number))
    precision = np.array([average_precision(at, ap) if len(at) else np.nan for at in ranks_of])
    if np.isnan(precision).all():
        raise no_match_error(same_person)
    return averages(ranks_of, precision, ranks=ranks)


def averages(ranks_of: Sequence[np.ndarray], precision: np.ndarray, *, ranks: Iterable[int]) -> RetrievalMetrics:
    """The metrics of queries whose matches are at these ranks (Q arrays) and give this average precision (Q,)."""
    penalty = np.array([len(at) / at[-1] if len(at) else np.nan for at in ranks_of])
    first = np.array([at[0] if len(at) else np.inf for at in ranks_of])
    valid = np.isfinite(first)
    return RetrievalMetrics(
        mAP=_mean(precision[valid]),
        cmc={int(rank): _mean(first[valid] <= rank) for rank in ranks},
        mINP=_mean(penalty[valid]),
        num_queries=len(ranks_of),
        num_valid=int(valid.sum()),
        average_precision=precision,
        inverse_negative_penalty=penalty,
        match_ranks=tuple(ranks_of),
    )


def match_ranks(row: np.ndarray, same: np.ndarray, dropped: np.ndarray) -> np.ndarray:
    """Ranks (m,) of a query's matches among its kept gallery images, ascending from 1; ties rank non-matches first.

    row: (G,) distances; same: (n,) gallery indices of the query's person; dropped: (n,) bool, those left out.
    A match's rank is 1 + the non-matches at most as far + the matches before it. Only the distances up to the farthest
    match are sorted, and only as values.
    """
    of_person = row[same]
    matches = np.sort(of_person[~dropped])
    if not len(matches):
        return np.empty(0, dtype=np.int64)
    near = np.sort(row[np.flatnonzero(row <= matches[-1])])  # by index: a gather by flags is several times slower
    # Everybody at most as far, less the person's own images, kept or dropped.
    others = np.searchsorted(near, matches, side="right") - np.searchsorted(np.sort(of_person), matches, side="right")
    return 1 + others + np.arange(len(matches))


def average_precision(ranks: np.ndarray, rule: str = "step") -> float:
    """Average precision from the ascending ranks (m,) of all m matches, m at least 1.

    "step": mean of the precision at each match. "trapezoid": mean of that and the precision one rank before it, which
    is 1 before the first rank (compute_AP.m of Zheng et al. 2015).
    """
    found = np.arange(1, len(ranks) + 1)
    precision = found / ranks
    if rule == "trapezoid":
        before = np.where(ranks > 1, (found - 1) / np.maximum(ranks - 1, 1), 1.0)
        precision = (precision + before) / 2
    return float(precision.mean())


def _mean(values: np.ndarray) -> float:
    """The float64 mean, NaN without values."""
    return float(values.mean(dtype=np.float64)) if len(values) else float("nan")


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


def single_shot_cmc(
    blocks: Blocks,
    same_person: SamePerson,
    *,
    ranks: Sequence[int] = (1, 5, 10),
    repeats: int = 10,
    seed: int = 0,
) -> dict[int, float]:
    """rank -> share of draws with the match at or before it, averaged over the queries that have a match.

    blocks: as in `metrics_from_blocks`. For each query, `repeats` times, one of the gallery images of every person is
    drawn among those that the same-camera rule keeps; the rank is that of the query's person, and of equal distances
    the others count as nearer. Draws depend on the seed and the query's row, not on the block size.
    Raises UserError as `metrics_from_blocks` does.
    Source: Li et al. 2014 (CUHK03).
    """
    by_person = np.argsort(same_person.gallery_persons, kind="stable")
    hits = {int(rank): 0 for rank in ranks}
    valid = 0
    for number, row in query_distances(blocks, same_person):
        same, dropped = same_person.of(number)
        matches = same[~dropped]
        if not len(matches):
            continue
        valid += 1
        kept = by_person[~np.isin(by_person, same[dropped])]
        persons = same_person.gallery_persons[kept]
        first = np.flatnonzero(np.diff(persons, prepend=persons[0] - 1))
        counts = np.diff(first, append=len(kept))
        chance = np.random.default_rng([seed, number]).random((repeats, len(first)))
        drawn = row[kept[first + (chance * counts).astype(np.int64)]]
        own = int(np.searchsorted(persons[first], same_person.query_persons[number]))
        place = (drawn <= drawn[:, [own]]).sum(1)  # its own draw is among them: ranks count from 1
        for rank in hits:
            hits[rank] += int((place <= rank).sum())
    if not valid:
        raise no_match_error(same_person)
    return {rank: count / (valid * repeats) for rank, count in hits.items()}
