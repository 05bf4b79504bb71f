"""The sparse re-ranking against the dense textbook version, and what it does to a ranking."""

import numpy as np
import pytest
import torch

from modeling_mllmreid.evaluation.metrics import evaluate_retrieval, metrics_from_blocks
from modeling_mllmreid.retrieval import distances, reranking
from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.retrieval.reranking import rerank_blocks
from modeling_mllmreid.utils.errors import UserError


def textbook(q, g, k1, k2, share):
    """Zhong et al. 2017, with the whole matrix and whole vectors, in float64."""
    both = np.concatenate([q, g]).astype(np.float64)
    squared = ((both[:, None] - both[None]) ** 2).sum(2)
    d = squared / squared.max(1, keepdims=True)
    rank = np.argsort(d, axis=1, kind="stable")

    def reciprocal(i, k):
        return {j for j in rank[i, : k + 1] if i in rank[j, : k + 1]}

    v = np.zeros_like(d)
    for i in range(len(both)):
        start = reciprocal(i, k1)
        grown = set(start)
        for j in start:
            other = reciprocal(j, round(k1 / 2))
            if len(other & start) > 2 / 3 * len(other):
                grown |= other
        members = sorted(grown)
        v[i, members] = np.exp(-d[i, members])
        v[i] /= v[i].sum()
    v = np.stack([v[rank[i, :k2]].mean(0) for i in range(len(both))])
    queries = len(q)
    shared = np.minimum(v[:queries, None], v[None, queries:]).sum(2)
    return (1 - share) * (1 - shared / (2 - shared)) + share * d[:queries, queries:]


def whole(q, g, **options):
    return torch.cat([block for _, block in rerank_blocks(q, g, **options)]).numpy()


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_textbook(seed):
    rng = np.random.default_rng(seed)
    queries, gallery = int(rng.integers(1, 30)), int(rng.integers(1, 120))
    k1, k2 = [(20, 6), (7, 3), (5, 1), (2, 6), (1, 1)][seed % 5]
    share, metric = float(rng.choice([0.0, 0.3, 1.0])), ("cosine", "euclidean")[seed // 2 % 2]
    centers = rng.normal(size=(8, 12)) + 2
    q, g = (centers[rng.integers(0, 8, n)] + 0.5 * rng.normal(size=(n, 12)) for n in (queries, gallery))
    sides = (unit(q), unit(g)) if metric == "cosine" else (q, g)
    options = {"k1": k1, "k2": k2, "lambda_value": share, "metric": metric, "block_size": 7}
    np.testing.assert_allclose(whole(q, g, **options), textbook(*sides, k1, k2, share), rtol=0, atol=1e-5)


def test_any_number_of_images_at_once_gives_the_same(monkeypatch):
    """As of a gallery of many thousands: blocks of all images by all, of rows, and of pairs."""
    rng = np.random.default_rng(7)
    q, g = rng.normal(size=(9, 8)), rng.normal(size=(50, 8))
    reference = whole(q, g, k1=6, k2=3)
    monkeypatch.setattr(distances, "BLOCK_BYTES", 1)
    monkeypatch.setattr(reranking, "IMAGES", 16)
    monkeypatch.setattr(reranking, "PAIRS", 7)
    np.testing.assert_array_equal(whole(q, g, k1=6, k2=3), reference)
    np.testing.assert_allclose(reference, textbook(unit(q), unit(g), 6, 3, 0.3), rtol=0, atol=1e-5)


def test_duplicates_and_collapse():
    """Exact ties go by index, as the textbook's stable sort has it; equal features have a distance at all."""
    rng = np.random.default_rng(0)
    q = rng.integers(-2, 3, (6, 4)).astype(np.float32)
    g = np.concatenate([q, q, rng.integers(-2, 3, (20, 4))]).astype(np.float32)
    got = whole(q, g, k1=4, k2=2, metric="euclidean")
    np.testing.assert_allclose(got, textbook(q, g, 4, 2, 0.3), rtol=0, atol=1e-5)
    same = whole(np.ones((3, 4)), np.ones((9, 4)))
    assert np.isfinite(same).all() and (same == same[0, 0]).all()


def test_a_narrow_cone_is_reranked_like_a_wide_one():
    """Far from the origin the cosine distances are those of the points' differences, but for their scale."""
    rng = np.random.default_rng(4)
    axis = np.zeros(17)
    axis[0] = 1
    q, g = (np.pad(rng.normal(size=(n, 16)), ((0, 0), (1, 0))) for n in (9, 40))
    near = whole(axis + 1e-4 * q, axis + 1e-4 * g)
    np.testing.assert_allclose(near, textbook(unit(axis + 1e-4 * q), unit(axis + 1e-4 * g), 20, 6, 0.3), atol=1e-3)


def test_kinds_and_blocks_agree():
    rng = np.random.default_rng(1)
    q, g = rng.normal(size=(9, 16)).astype(np.float32), rng.normal(size=(40, 16)).astype(np.float32)
    reference = whole(q, g)
    assert reference.dtype == np.float32
    np.testing.assert_array_equal(whole(torch.from_numpy(q), torch.from_numpy(g), block_size=1), reference)
    np.testing.assert_array_equal(whole(q.astype(np.float64), g), reference)


@pytest.mark.filterwarnings("error")
def test_read_only_arrays_gradients_and_half_precision():
    rng = np.random.default_rng(3)
    q, g = (rng.normal(size=(n, 16)).astype(np.float16).astype(np.float32) for n in (9, 40))
    reference = whole(q, g)
    q.setflags(write=False)
    np.testing.assert_array_equal(whole(q, torch.tensor(g, requires_grad=True)), reference)
    np.testing.assert_array_equal(whole(q.astype(np.float16), torch.tensor(g).half()), reference)


def test_empty_sides():
    some, none = np.eye(3), np.empty((0, 3))
    assert whole(some, none).shape == (3, 0)
    assert list(rerank_blocks(none, some)) == list(rerank_blocks(none, none)) == []


def test_it_mends_a_ranking():
    """People seen from two sides: their images of one side lead to those of the other."""
    rng = np.random.default_rng(2)
    persons = np.repeat(np.arange(30), 12)
    features = rng.normal(size=(30, 24))[persons] + 0.9 * rng.normal(size=(360, 24))
    query = np.arange(0, 360, 12)
    gallery = np.setdiff1d(np.arange(360), query)
    plain = evaluate_retrieval(features[query], features[gallery], persons[query], persons[gallery])
    blocks = rerank_blocks(features[query], features[gallery])
    reranked = metrics_from_blocks(blocks, SamePerson(persons[query], persons[gallery]))
    assert reranked.mAP > plain.mAP + 0.03


@pytest.mark.parametrize(
    "options, message",
    [
        ({"k1": 0}, "k1 0, k2 6: not numbers of neighbours"),
        ({"k2": 0}, "k1 20, k2 0: not numbers of neighbours"),
        ({"lambda_value": 1.5}, "lambda_value: 1.5 is no share"),
        ({"metric": "l1"}, "metric: unknown 'l1'"),
        ({"block_size": 0}, "block_size: 0"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(UserError, match=message):
        rerank_blocks(np.eye(3), np.eye(3), **options)
