import numpy as np
from unknown_people import features_of

from modeling_mllmreid.retrieval.merging import Groups, merge_groups
from modeling_mllmreid.retrieval.neighbourhoods import find_candidates


def naive_similarity(features: np.ndarray) -> np.ndarray:
    """The similarity of all pairs by its definition, with sets and dictionaries."""
    points = features.astype(np.float64)
    distance = np.maximum(1 - points @ points.T, 0)
    order = [[j for j in np.argsort(row, kind="stable").tolist() if j != i] for i, row in enumerate(distance)]
    weights = []
    for i, near in enumerate(order):
        members = {i: 1.0} | {j: np.exp(-distance[i, j]) for j in near[:10] if i in order[j][:10]}
        weights.append({j: weight / sum(members.values()) for j, weight in members.items()})
    averaged = [
        {m: sum(weights[j].get(m, 0) for j in [i, *near[:2]]) / 3 for j in [i, *near[:2]] for m in weights[j]}
        for i, near in enumerate(order)
    ]
    jaccard = np.zeros_like(distance)
    for i, one in enumerate(averaged):
        for j, two in enumerate(averaged):
            either = one.keys() | two.keys()
            jaccard[i, j] = sum(min(one.get(m, 0), two.get(m, 0)) for m in either) / sum(
                max(one.get(m, 0), two.get(m, 0)) for m in either
            )
    return jaccard


def test_similarity_is_that_of_the_definition():
    features = features_of(np.repeat(np.arange(8), 8))
    found, naive = find_candidates(features), naive_similarity(features)
    assert (found.first < found.second).all() and len(found.first) >= 64 * 50 / 2
    np.testing.assert_allclose(found.similarity, naive[found.first, found.second], atol=1e-6)
    points = features.astype(np.float64)
    np.testing.assert_allclose(found.distance, 1 - (points[found.first] * points[found.second]).sum(1), atol=1e-6)


def test_evidence_is_the_mean_over_all_pairs_of_two_groups():
    """After merges, too; pairs that are no candidates have the similarity 0."""
    features = features_of(np.repeat(np.arange(20), 5), noise=0.8)
    candidates = find_candidates(features)
    groups = Groups(features, candidates, np.arange(100))
    similarity = np.zeros((100, 100))
    similarity[candidates.first, candidates.second] = candidates.similarity
    similarity += similarity.T
    points = features.astype(np.float64)
    order = []

    def check(first: int, second: int, score: float, evidence: np.ndarray) -> bool:
        one, two = groups.members[first], groups.members[second]
        pairs = np.ix_(one, two)
        sizes = sorted([len(one), len(two)])
        expected = [1 - (points @ points.T)[pairs].mean(), similarity[pairs].mean(), *np.log(sizes)]
        np.testing.assert_allclose(evidence, expected, atol=1e-6)
        order.append(score)
        return score > 0

    left = merge_groups(groups, lambda evidence: 2 - 5 * evidence[:, 0] + 4 * evidence[:, 1], -2, check)
    assert len(groups.members) < 40 and len(order) > 80
    assert all(-2 <= pair.score <= 0 and {pair.first, pair.second} <= groups.members.keys() for pair in left)
    # Every pair of final groups with at least this score is there once.
    expected = set()
    for group in groups.members:
        others, evidence = groups.evidence(group)
        scores = 2 - 5 * evidence[:, 0] + 4 * evidence[:, 1]
        expected |= {frozenset((group, int(other))) for other in others[scores >= -2]}
    assert sorted(map(sorted, expected)) == sorted([pair.first, pair.second] for pair in left)
