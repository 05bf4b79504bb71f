"""Simulates the coverage of the 95 % intervals and prints it as Markdown tables.

python benchmarks/coverage.py [--replications 1000]

Contrast: differences over seeds x queries with normal effects of seeds, people, both together, and queries. One of them
is the larger component of the variance of the mean. Share: Rank-1 of people who differ in how easy they are to find.
Threshold: features of people around their centres. The people of val search among themselves and are drawn anew ("new
gallery"), or they search among the same 300 strangers ("same gallery").

Queries for each person: 3; 1 to 20, skewed, mostly 1 to 3; or 20 for a tenth of the people and 1 for all others. Each
cell holds the coverage in percent (standard error 0.7 points) and the median width of the interval. A few minutes.
"""

import argparse
import itertools

import numpy as np

from modeling_mllmreid.evaluation.threshold_choice import choose_threshold
from modeling_mllmreid.research.ablation.contrasts import contrast, interval_over_seeds
from modeling_mllmreid.retrieval.matching import SamePerson

QUERIES = ("3 each", "1 to 20", "20 or 1")
# Standard deviations of seeds, people, both together and queries, relative to the larger component of the mean.
COMPONENTS = {
    "seeds alone": (1.0, 0.0, 0.0, 0.0),
    "seeds": (1.0, 0.3, 0.1, 0.1),
    "people": (0.3, 1.0, 0.1, 0.1),
    "seeds and people": (1.0, 1.0, 0.3, 0.3),
    "both together": (0.0, 0.0, 1.0, 0.0),
    "queries": (0.0, 0.0, 0.0, 1.0),
}
SHARES = (0.5, 0.8, 0.95)
# Width of the features, noise of an image, and whether the noise differs between people.
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
    """Simulates contrasts whose true difference is 0."""
    print(f"\nContrasts, {replications:,} replications: coverage | width\n")
    print_head("seeds", "people", "larger part", *QUERIES)
    for seeds, people, component in itertools.product((1, 3, 4, 10), (20, 60), COMPONENTS):
        if seeds == 1 and "seeds" in component:
            continue
        rng, cells = np.random.default_rng(0), []
        for queries in QUERIES:
            results = []
            for _ in range(replications):
                values, persons = differences(rng, seeds, query_counts(rng, people, queries), COMPONENTS[component])
                results.append(contrast(values, np.zeros_like(values), persons))
            cells.append(cell([(result.low, result.high, 0) for result in results]))
            agree = [(result.low <= 0 <= result.high) == (result.p_value >= 0.05) for result in results if seeds > 1]
            assert all(agree), "an interval and its p-value disagree"
        print_line(seeds, people, component, *cells)


def differences(
    rng: np.random.Generator, seeds: int, counts: np.ndarray, scales: tuple[float, float, float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns values (S, Q) and persons (Q,) of a contrast whose true difference is 0."""
    persons = np.repeat(np.arange(len(counts)), counts)
    # With this scale, seeds and people of equal deviation contribute equally to the mean.
    seed_scale = np.sqrt(seeds * ((counts / counts.sum()) ** 2).sum())
    seed, person, both, query = (
        rng.normal(0, scale, size)
        for scale, size in zip(
            scales, ((seeds, 1), len(counts), (seeds, len(counts)), (seeds, len(persons))), strict=True
        )
    )
    return seed_scale * seed + (person + both)[:, persons] + query, persons


def shares(replications: int) -> None:
    """Simulates Rank-1 of people who differ in how easy they are to find."""
    print(f"\nRank-1, {replications:,} replications: coverage | width\n")
    print_head("seeds", "people", "Rank-1", *QUERIES)
    for seeds, people, share in itertools.product((1, 3), (20, 60), SHARES):
        rng = np.random.default_rng(0)
        ease = rng.normal(0, 2, 1_000_000)
        middle = bisect_mean(ease, share)
        cells = []
        for queries in QUERIES:
            intervals = []
            for _ in range(replications):
                persons = np.repeat(np.arange(people), query_counts(rng, people, queries))
                chance = logistic(middle + rng.normal(0, 2, people))[persons]
                hits = (rng.random((seeds, len(persons))) < chance).astype(np.float64)
                interval = interval_over_seeds(hits, persons)
                intervals.append((interval.low, interval.high, share))
            cells.append(cell(intervals))
        print_line(seeds, people, f"{share:.0%}", *cells)


def thresholds(replications: int) -> None:
    """Simulates the distance at which a tenth of the searches reports a person."""
    print(f"\nThresholds, {replications:,} replications: coverage | width\n")
    print_head("gallery", "people", "features", *QUERIES)
    for same, people, spread in itertools.product((False, True), (12, 20, 60), SPREADS):
        cells = []
        for queries in QUERIES:
            rng = np.random.default_rng(0)
            truth, intervals = float("nan"), []
            for number in range(replications):
                if number == 0 or (same and number % 25 == 0):
                    strangers = unit(rng.normal(size=(300 if same else 0, SPREADS[spread][0])))
                    truth = true_threshold(rng, people, SPREADS[spread], strangers)
                query, gallery, rule = val(rng, query_counts(rng, people, queries), SPREADS[spread], strangers)
                chosen = choose_threshold(query, gallery, rule)
                if chosen is not None:
                    intervals.append((chosen.low, chosen.high, truth))
            cells.append(cell(intervals))
        print_line("same" if same else "new", people, spread, *cells)


def val(
    rng: np.random.Generator, counts: np.ndarray, spread: tuple[int, float, bool], strangers: np.ndarray
) -> tuple[np.ndarray, np.ndarray, SamePerson]:
    """Returns query and gallery features with their rule: two gallery images of each person, and the strangers."""
    width, noise, unequal = spread
    centers, people = rng.normal(size=(len(counts), width)), np.arange(len(counts))
    noises = noise * np.exp(rng.normal(0, 0.5 if unequal else 0, len(counts)))
    query_persons, gallery_persons = np.repeat(people, counts), np.repeat(people, 2)
    query = centers[query_persons] + noises[query_persons, None] * rng.normal(size=(len(query_persons), width))
    gallery = centers[gallery_persons] + noise * rng.normal(size=(len(gallery_persons), width))
    gallery_persons = np.concatenate([gallery_persons, len(counts) + np.arange(len(strangers))])
    gallery = np.concatenate([unit(gallery), strangers])
    return unit(query).astype(np.float32), gallery.astype(np.float32), SamePerson(query_persons, gallery_persons)


def true_threshold(
    rng: np.random.Generator, people: int, spread: tuple[int, float, bool], strangers: np.ndarray
) -> float:
    """Returns the distance at which a tenth of all searches reports a person, from very many people."""
    nearest = []
    for _ in range(20_000 // people if len(strangers) else 100_000 // people):
        query, gallery, rule = val(rng, np.ones(people, dtype=int), spread, strangers)
        distances = 1 - query @ gallery.T
        distances[rule.query_persons[:, None] == rule.gallery_persons] = np.inf
        nearest.append(distances.min(1))
    return float(np.quantile(np.concatenate(nearest), 0.1))


def query_counts(rng: np.random.Generator, people: int, queries: str) -> np.ndarray:
    """Returns the number of queries of each person."""
    if queries == "3 each":
        return np.full(people, 3)
    if queries == "1 to 20":
        return 1 + np.floor(20 * rng.random(people) ** 4).astype(int)
    return np.where(np.arange(people) < max(people // 10, 2), 20, 1)


def bisect_mean(ease: np.ndarray, share: float) -> float:
    """Returns the offset of the ease at which its logistic has this mean."""
    low, high = -20.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if logistic(middle + ease).mean() < share else (low, middle)
    return low


def logistic(x: np.ndarray) -> np.ndarray:
    """Returns 1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def unit(features: np.ndarray) -> np.ndarray:
    """Returns features (N, D) of length 1."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def cell(intervals: list[tuple[float, float, float]]) -> str:
    """Returns coverage and median width of intervals (low, high, truth)."""
    low, high, truth = np.array(intervals).T
    return f"{100 * np.mean((low <= truth) & (truth <= high)):.1f} \\| {np.median(high - low):.3f}"


def print_head(*names: str) -> None:
    """Prints the head of a table."""
    print(f"| {' | '.join(names)} |\n|{'---|' * len(names)}")


def print_line(*cells: object) -> None:
    """Prints a line of a table."""
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    main()
