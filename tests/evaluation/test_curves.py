"""CMC and precision-recall curves against naive loops over the ranks."""

import numpy as np
import pytest

from modeling_mllmreid.evaluation.metrics import cmc_curve, evaluate_retrieval, precision_recall_curve


@pytest.fixture
def metrics():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 9, 30), rng.integers(0, 8, 80), rng.integers(0, 2, 30), rng.integers(0, 2, 80)
    ranks = (1, 5, 40)
    return evaluate_retrieval(rng.normal(size=(30, 4)), rng.normal(size=(80, 4)), *ids, ranks=ranks)


def test_cmc_is_that_of_the_metrics(metrics):
    curve = cmc_curve(metrics, 40)
    assert curve.shape == (40,) and (np.diff(curve) >= 0).all()
    assert {rank: curve[rank - 1] for rank in metrics.cmc} == pytest.approx(metrics.cmc)
    assert metrics.num_valid < 30 and cmc_curve(metrics, 200)[-1] == 1


@pytest.mark.parametrize("levels", [11, 101])
def test_precision_recall_against_a_loop(metrics, levels):
    recall, precision = precision_recall_curve(metrics, levels)
    expected = []
    for level in np.linspace(0, 1, levels):
        of_queries = []
        for ranks in metrics.match_ranks:
            if len(ranks):
                points = [((i + 1) / len(ranks), (i + 1) / rank) for i, rank in enumerate(ranks)]
                of_queries.append(max(p for r, p in points if r >= level - 1e-9))
        expected.append(np.mean(of_queries))
    np.testing.assert_allclose(precision, expected, atol=1e-12)
    assert recall[0] == 0 and recall[-1] == 1
    np.testing.assert_allclose(precision[-1], metrics.mINP)
