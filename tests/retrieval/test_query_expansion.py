"""Alpha query expansion against a plain loop."""

import numpy as np
import pytest
import torch

from modeling_mllmreid.evaluation.metrics import evaluate_retrieval
from modeling_mllmreid.retrieval.reranking import expand_queries
from modeling_mllmreid.utils.errors import UserError


@pytest.mark.parametrize("k, alpha", [(1, 3.0), (5, 0.0), (50, 2.0)])
def test_equals_a_loop(k, alpha):
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(7, 6)) + 0.5, rng.normal(size=(20, 6))
    before = q.copy(), g.copy()
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    expected = []
    for row in q / np.linalg.norm(q, axis=1, keepdims=True):
        similar = unit @ row
        near = np.argsort(-similar)[:k]
        row = row + sum(max(similar[j], 0) ** alpha * unit[j] for j in near)
        expected.append(row / np.linalg.norm(row))
    got = expand_queries(q, g, k=k, alpha=alpha)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_array_equal(expand_queries(torch.from_numpy(q), torch.from_numpy(g), k=k, alpha=alpha), got)
    assert (q == before[0]).all() and (g == before[1]).all()


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_gradients_and_empty_sides():
    rng = np.random.default_rng(2)
    q, g = rng.normal(size=(3, 6)).astype(np.float32), rng.normal(size=(40, 6)).astype(np.float32)
    reference = expand_queries(q, g)
    np.testing.assert_array_equal(expand_queries(q, g, k=10, alpha=3.0), reference)
    q.setflags(write=False)
    np.testing.assert_array_equal(expand_queries(q, torch.tensor(g, requires_grad=True)), reference)
    alone = expand_queries(q, g[:0])
    np.testing.assert_allclose(alone, q / np.linalg.norm(q, axis=1, keepdims=True), atol=1e-6)
    assert expand_queries(q[:0], g).shape == (0, 6)


def test_it_mends_a_ranking():
    rng = np.random.default_rng(1)
    persons = np.repeat(np.arange(30), 12)
    features = rng.normal(size=(30, 24))[persons] + 0.9 * rng.normal(size=(360, 24))
    query = np.arange(0, 360, 12)
    gallery = np.setdiff1d(np.arange(360), query)
    score = lambda rows: evaluate_retrieval(rows, features[gallery], persons[query], persons[gallery]).mAP  # noqa: E731
    assert score(expand_queries(features[query], features[gallery], k=5)) > score(features[query]) + 0.03


def test_a_narrow_cone_keeps_its_digits():
    rng = np.random.default_rng(3)
    q, g = (np.eye(6)[0] + 1e-4 * rng.normal(size=(n, 6)) for n in (4, 12))
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in (q, g)]
    near = np.argsort(((unit[0][:, None] - unit[1][None]) ** 2).sum(2), axis=1)[:, :3]
    expected = np.stack([row + unit[1][found].sum(0) for row, found in zip(unit[0], near, strict=True)])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(expand_queries(q, g, k=3), expected, atol=7e-8)


def test_mistakes():
    with pytest.raises(UserError, match="alpha: -1 is negative"):
        expand_queries(np.eye(3), np.eye(3), alpha=-1)
    with pytest.raises(UserError, match="k: 0 is not a number"):
        expand_queries(np.eye(3), np.eye(3), k=0)
