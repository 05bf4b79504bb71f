"""Features on a GPU: exact distances, and the metrics and ranks of the CPU."""

import numpy as np
import pytest
import torch

from modeling_mllmreid.evaluation.metrics import evaluate_retrieval
from modeling_mllmreid.retrieval.distances import distance_blocks
from modeling_mllmreid.retrieval.ranking import rank_gallery
from modeling_mllmreid.retrieval.reranking import expand_queries, rerank_blocks

pytestmark = pytest.mark.gpu


def features(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(q, g, **options):
    return torch.cat([block for _, block in distance_blocks(q, g, **options)])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("width", [64, 301, 1024])
def test_a_distance_depends_on_its_two_features_alone(metric, width):
    q, g = features(0, 333, width), features(1, 1501, width)
    g[700] = g[3]
    got = whole(q, g.cuda(), metric=metric)
    assert got.is_cuda and torch.equal(got[:, 700], got[:, 3])
    for block_size in (1, 7, 64, 250):
        assert torch.equal(whole(q.cuda(), g.cuda(), metric=metric, block_size=block_size), got)
    order = torch.randperm(1501, generator=torch.Generator().manual_seed(2))
    assert torch.equal(whole(q, g[order].cuda(), metric=metric), got[:, order.cuda()])
    torch.testing.assert_close(got.cpu(), whole(q, g, metric=metric), atol=2e-5, rtol=1e-5)
    before = torch.backends.cuda.matmul.fp32_precision
    try:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert torch.equal(whole(q, g.cuda(), metric=metric), got)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_ranks_and_metrics_are_the_cpus(metric):
    rng = np.random.default_rng(0)
    persons = rng.normal(size=(12, 48))
    ids, gallery_ids = np.arange(40) % 12, np.arange(70) % 12
    q, g = (torch.tensor(persons[of] + 1.5 * rng.normal(size=(len(of), 48))).float() for of in (ids, gallery_ids))
    g[60:] = g[3:13]  # ties, of the same person and of others
    cameras = rng.integers(0, 3, 40), rng.integers(0, 3, 70)
    expected = evaluate_retrieval(q, g, ids, gallery_ids, *cameras, metric=metric).to_dict()
    got = evaluate_retrieval(q.cuda(), g.cuda(), ids, gallery_ids, *cameras, metric=metric).to_dict()
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-12), name
    for block_size in (None, 7):
        ranking = rank_gallery(q.cuda(), g.cuda(), 20, metric=metric, block_size=block_size)
        assert np.array_equal(ranking.indices, rank_gallery(q, g, 20, metric=metric).indices)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_re_ranking_and_expansion_are_the_cpus(metric):
    q, g = features(3, 30, 32), features(4, 80, 32)
    (_, expected), *_ = rerank_blocks(q, g, k1=5, k2=3, metric=metric)
    (_, got), *_ = rerank_blocks(q.cuda(), g.cuda(), k1=5, k2=3, metric=metric)
    assert got.is_cuda
    torch.testing.assert_close(got.cpu(), expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(expand_queries(q.cuda(), g.cuda(), k=4), expand_queries(q, g, k=4), atol=1e-5)
