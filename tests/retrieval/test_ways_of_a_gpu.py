"""What a GPU does instead of NumPy, done on the CPU: the answers are the same, ties included."""

import logging

import numpy as np
import pytest
import torch

from modeling_mllmreid.evaluation import verification
from modeling_mllmreid.evaluation.metrics import evaluate_retrieval
from modeling_mllmreid.evaluation.verification import open_set_from_blocks, verification_from_blocks
from modeling_mllmreid.retrieval import distances, gpu_distances, match_ranks, ranking, reranking
from modeling_mllmreid.retrieval.distances import distance_blocks
from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.retrieval.ranking import rank_gallery
from modeling_mllmreid.retrieval.reranking import rerank_blocks
from modeling_mllmreid.utils.errors import UserError


@pytest.fixture
def switched(monkeypatch):
    """Returns a function that computes on the CPU, then in the ways of a GPU, and says which modules have them."""

    def both(compute):
        expected, asked = compute(), set()
        for module in (match_ranks, ranking, reranking, verification):
            name = module.__name__.rpartition(".")[2]
            monkeypatch.setattr(module, "on_cpu", lambda tensor, name=name: bool(asked.add(name)))
        got = compute()
        monkeypatch.undo()
        return expected, got, asked

    return both


def problem(levels):
    """Features of whole numbers, with equal distances if there are few levels."""
    rng = np.random.default_rng(levels)
    q, g = (rng.integers(-levels, levels + 1, (count, 6)).astype(np.float32) for count in (31, 140))
    ids = rng.integers(0, 9, 31), rng.integers(0, 8, 140), rng.integers(-1, 3, 31), rng.integers(-1, 3, 140)
    return q, g, ids


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("levels", [1, 50])
def test_metrics(switched, levels, metric):
    q, g, ids = problem(levels)
    expected, got, asked = switched(lambda: evaluate_retrieval(q, g, *ids, metric=metric, block_size=7))
    assert asked == {"match_ranks"} and got.to_dict() == expected.to_dict()
    for ranks, others in zip(got.match_ranks, expected.match_ranks, strict=True):
        np.testing.assert_array_equal(ranks, others)


@pytest.mark.parametrize("levels", [1, 50])
def test_verification_and_open_set(switched, levels):
    q, g, ids = problem(levels)
    blocks = [(slice(0, 20), torch.cdist(*map(torch.from_numpy, (q[:20], g))).round())]
    blocks.append((slice(20, 31), torch.cdist(*map(torch.from_numpy, (q[20:], g))).round()))

    def compute():
        rule = SamePerson(*ids)
        rates = (0.05, 0.3)
        pairs = verification_from_blocks(blocks, rule, fprs=rates)
        return pairs.to_dict(), open_set_from_blocks(blocks, rule, fpirs=rates).to_dict()

    expected, got, asked = switched(compute)
    assert asked == {"verification"} and got == expected


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("levels", [1, 50])
@pytest.mark.parametrize("k", [1, 13, 500])
def test_rankings(switched, k, levels, metric):
    q, g, ids = problem(levels)
    for rule in (None, SamePerson(*ids), SamePerson(np.full(31, 99), ids[1])):
        options = {"metric": metric, "same_person": rule, "block_size": 9}
        expected, got, asked = switched(lambda options=options: rank_gallery(q, g, k, **options))
        assert asked == {"ranking"}
        np.testing.assert_array_equal(got.indices, expected.indices)
        np.testing.assert_array_equal(got.distances, expected.distances)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("levels", [2, 50])
def test_re_ranking(switched, levels, metric):
    q, g, _ = problem(levels)
    compute = lambda: torch.cat([block for _, block in rerank_blocks(q, g, k1=9, k2=4, metric=metric)])  # noqa: E731
    expected, got, asked = switched(compute)
    assert asked == {"ranking", "reranking"}
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_the_nearest_in_a_block():
    block = torch.tensor([[0.5, 0.2, 0.5, -0.0, 0.5, 0.0], [3, 3, 3, 3, 3, 3]])
    for k in (1, 3, 6):
        expected = ranking.nearest_in_block(block, k)
        assert expected.tolist() == [[3, 5, 1, 0, 2, 4][:k], [0, 1, 2, 3, 4, 5][:k]]
        assert torch.equal(ranking._nearest_on_device(block, k), expected)


def test_too_little_memory_makes_blocks_smaller(monkeypatch, caplog):
    q, g, _ = problem(50)
    monkeypatch.setattr(distances, "EXACT_DEVICES", ("cpu",))
    expected = torch.cat([block for _, block in distance_blocks(q, g)])
    whole, room = gpu_distances._factor, 40

    def factor(features, start, stop, *options):
        if stop - start > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(features, start, stop, *options)

    monkeypatch.setattr(gpu_distances, "_factor", factor)
    with caplog.at_level(logging.WARNING):
        blocks = list(distance_blocks(q, g))
    assert torch.equal(torch.cat([block for _, block in blocks]), expected)
    assert [rows for rows, _ in blocks] == [slice(start, min(start + 7, 31)) for start in range(0, 31, 7)]
    assert caplog.messages == [f"cpu: too little free memory: {count} queries at once from now on" for count in (15, 7)]
    room = 0
    with pytest.raises(
        UserError, match="cpu: has no room for the distances of one query to 140 images: free its memory"
    ):
        list(distance_blocks(q, g))
