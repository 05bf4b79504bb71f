"""How often the 95 % intervals hold the truth, by simulation, as a Markdown table.

python benchmarks/coverage.py [--replications 1000]

A contrast: differences of seeds x queries, each query one of a person's, with normal effects of seeds, people, both
together and queries; the larger part of the variance of the mean is one of them. A share: Rank-1, whose people differ
in how easily they are found. A threshold: features of people around their centres; val's people search among
themselves, and all are drawn anew ("new gallery"), or they search among the same 300 strangers ("same gallery").
Queries for each person: 3; 1 to 20, skewed, most with 1 to 3; or 20 for a tenth of the people and 1 for all others.
A few minutes. Each number is the coverage in percent (standard error 0.7 points), behind a stroke the
median width of the interval.
"""

import argparse
import itertools

import numpy as np

from modeling_mllmreid.evaluation.threshold import choose_threshold
from modeling_mllmreid.research.ablation.contrasts import contrast, interval_over_seeds
from modeling_mllmreid.retrieval.matching import SamePerson

QUERIES = ("3 each", "1 to 20", "20 or 1")
# Standard deviations of seeds and people, in those of the mean's larger part, and of what is of both, and queries.
PARTS = {
    "seeds alone": (1.0, 0.0, 0.0, 0.0),
    "seeds": (1.0, 0.3, 0.1, 0.1),
    "people": (0.3, 1.0, 0.1, 0.1),
    "seeds and people": (1.0, 1.0, 0.3, 0.3),
    "both together": (0.0, 0.0, 1.0, 0.0),
    "queries": (0.0, 0.0, 0.0, 1.0),
}
SHARES = (0.5, 0.8, 0.95)
# Width of the features, noise of an image, whether people's images differ by unequal noise.
SPREADS = {"narrow": (16, 0.4, False), "unequal": (6, 0.4, True), "wide": (16, 1.5, False)}


def main() -> None:
    """Simulates and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replications", type=int, default=1000)
    args = parser.parse_args()
    contrasts(args.replications)
    shares(args.replications)
    thresholds(args.replications // 4)


def contrasts(replications: int) -> None:
    """A contrast of no difference."""
    print(f"\nContrasts, {replications:,} replications: coverage | width\n")
    head("seeds", "people", "larger part", *QUERIES)
    for seeds, people, part in itertools.product((1, 3, 4, 10), (20, 60), PARTS):
        if seeds == 1 and "seeds" in part:
            continue
        rng, cells = np.random.default_rng(0), []
        for queries in QUERIES:
            found = []
            for _ in range(replications):
                values, persons = differences(rng, seeds, counts(rng, people, queries), PARTS[part])
                found.append(contrast(values, np.zeros_like(values), persons))
            cells.append(cell([(of.low, of.high, 0) for of in found]))
            agree = [(of.low <= 0 <= of.high) == (of.p_value >= 0.05) for of in found if seeds > 1]
            assert all(agree), "an interval and its p-value disagree"
        line(seeds, people, part, *cells)


def differences(
    rng: np.random.Generator, seeds: int, counts: np.ndarray, parts: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Values (S, Q) and persons (Q,) of a contrast whose true difference is 0."""
    persons = np.repeat(np.arange(len(counts)), counts)
    # So that seeds and people of equal deviation give the mean of all equal parts.
    of_mean = np.sqrt(seeds * ((counts / counts.sum()) ** 2).sum())
    of_seed, of_person, of_both, of_query = (
        rng.normal(0, scale, size)
        for scale, size in zip(
            parts, ((seeds, 1), len(counts), (seeds, len(counts)), (seeds, len(persons))), strict=True
        )
    )
    return of_mean * of_seed + (of_person + of_both)[:, persons] + of_query, persons


def shares(replications: int) -> None:
    """Rank-1 of people who differ."""
    print(f"\nRank-1, {replications:,} replications: coverage | width\n")
    head("seeds", "people", "Rank-1", *QUERIES)
    for seeds, people, share in itertools.product((1, 3), (20, 60), SHARES):
        rng = np.random.default_rng(0)
        ease = rng.normal(0, 2, 1_000_000)
        middle = bisect_mean(ease, share)
        cells = []
        for queries in QUERIES:
            found = []
            for _ in range(replications):
                of_person = counts(rng, people, queries)
                persons = np.repeat(np.arange(people), of_person)
                chance = logistic(middle + rng.normal(0, 2, people))[persons]
                hits = (rng.random((seeds, len(persons))) < chance).astype(np.float64)
                interval = interval_over_seeds(hits, persons)
                found.append((interval.low, interval.high, share))
            cells.append(cell(found))
        line(seeds, people, f"{share:.0%}", *cells)


def thresholds(replications: int) -> None:
    """The distance at which a tenth of the searches names somebody."""
    print(f"\nThresholds, {replications:,} replications: coverage | width\n")
    head("gallery", "people", "features", *QUERIES)
    for same, people, spread in itertools.product((False, True), (12, 20, 60), SPREADS):
        cells = []
        for queries in QUERIES:
            rng = np.random.default_rng(0)
            truth, found = float("nan"), []
            for number in range(replications):
                if number == 0 or (same and number % 25 == 0):
                    strangers = unit(rng.normal(size=(300 if same else 0, SPREADS[spread][0])))
                    truth = threshold_of_many(rng, people, SPREADS[spread], strangers)
                query, gallery, rule = val(rng, counts(rng, people, queries), SPREADS[spread], strangers)
                chosen = choose_threshold(query, gallery, rule)
                if chosen is not None:
                    found.append((chosen.low, chosen.high, truth))
            cells.append(cell(found))
        line("same" if same else "new", people, spread, *cells)


def val(
    rng: np.random.Generator, counts: np.ndarray, spread: tuple[int, float, bool], strangers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, SamePerson]:
    """Query and gallery features with their rule: two gallery images of each person, and the strangers'."""
    width, noise, unequal = spread
    centers, people = rng.normal(size=(len(counts), width)), np.arange(len(counts))
    noises = noise * np.exp(rng.normal(0, 0.5 if unequal else 0, len(counts)))
    persons, shown = np.repeat(people, counts), np.repeat(people, 2)
    query = centers[persons] + noises[persons, None] * rng.normal(size=(len(persons), width))
    gallery = centers[shown] + noise * rng.normal(size=(len(shown), width))
    names = np.concatenate([shown, len(counts) + np.arange(len(strangers))])
    together = np.concatenate([unit(gallery), strangers])
    return unit(query).astype(np.float32), together.astype(np.float32), SamePerson(persons, names)


def threshold_of_many(
    rng: np.random.Generator, people: int, spread: tuple[int, float, bool], strangers: np.ndarray
) -> float:
    """The distance at which a tenth of all searches names somebody, of very many people."""
    nearest = []
    for _ in range(20_000 // people if len(strangers) else 100_000 // people):
        query, gallery, rule = val(rng, np.ones(people, dtype=int), spread, strangers)
        distances = 1 - query @ gallery.T
        distances[rule.query_persons[:, None] == rule.gallery_persons] = np.inf
        nearest.append(distances.min(1))
    return float(np.quantile(np.concatenate(nearest), 0.1))


def counts(rng: np.random.Generator, people: int, queries: str) -> np.ndarray:
    """How many queries each person has."""
    if queries == "3 each":
        return np.full(people, 3)
    if queries == "1 to 20":
        return 1 + np.floor(20 * rng.random(people) ** 4).astype(int)
    return np.where(np.arange(people) < max(people // 10, 2), 20, 1)


def bisect_mean(ease: np.ndarray, share: float) -> float:
    """What to add to the ease so that its logistic has this mean."""
    low, high = -20.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if logistic(middle + ease).mean() < share else (low, middle)
    return low


def logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows (N, D) of length 1."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def cell(found: list[tuple[float, float, float]]) -> str:
    """Coverage and median width of intervals (low, high, truth)."""
    low, high, truth = np.array(found).T
    return f"{100 * np.mean((low <= truth) & (truth <= high)):.1f} \\| {np.median(high - low):.3f}"


def head(*names: str) -> None:
    """A table's head."""
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")


def line(*cells: object) -> None:
    """A table's line."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
