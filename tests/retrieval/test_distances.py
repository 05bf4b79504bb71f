"""Blocks of distances: their values, their sizes, and what may not change them."""

import numpy as np
import pytest
import torch

from modeling_mllmreid.evaluation.metrics import metrics_from_blocks
from modeling_mllmreid.retrieval import distances as module
from modeling_mllmreid.retrieval import gpu_distances, points
from modeling_mllmreid.retrieval.distances import distance_blocks
from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.utils.errors import UserError


def whole(q, g, **options):
    blocks = list(distance_blocks(q, g, **options))
    assert all(block.dtype == torch.float32 for _, block in blocks)
    return torch.cat([block for _, block in blocks])


def features(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_values_against_float64():
    q, g = features(0, 21, 70), features(1, 33, 70)
    exact_q, exact_g = q.double(), g.double()
    cosine = 1 - torch.nn.functional.normalize(exact_q) @ torch.nn.functional.normalize(exact_g).T
    torch.testing.assert_close(whole(q, g).double(), cosine, atol=1e-6, rtol=0)
    euclidean = (exact_q[:, None] - exact_g[None]).norm(dim=2)
    torch.testing.assert_close(whole(q, g, metric="euclidean").double(), euclidean, atol=1e-5, rtol=0)
    far = whole(q + 500, g + 500, metric="euclidean").double()  # a narrow cone: float32 alone loses all of it
    torch.testing.assert_close(far, ((q + 500)[:, None] - (g + 500)[None]).double().norm(dim=2), atol=1e-3, rtol=0)


def cone(spread, queries=24, gallery=150, width=96):
    """Float64 features at about spread**2 of cosine distance, their persons, and the distances in float64."""
    rng = np.random.default_rng(0)
    axis, persons = rng.normal(size=width) + 0.5, rng.normal(size=(12, width))
    axis *= np.sqrt(width) / np.linalg.norm(axis)
    sides = [
        (axis + spread * (persons[ids] + 1.5 * rng.normal(size=(len(ids), width)))) * rng.uniform(0.2, 9, (len(ids), 1))
        for ids in (np.arange(queries) % 12, np.arange(gallery) % 12)
    ]
    units = [(side / np.linalg.norm(side.astype(np.longdouble), axis=1, keepdims=True)) for side in sides]
    exact = ((units[0][:, None] - units[1][None]) ** 2).sum(2) / 2
    return *sides, SamePerson(np.arange(queries) % 12, np.arange(gallery) % 12), exact.astype(np.float64)


@pytest.mark.parametrize("spread, error", [(0.3, 1e-6), (1e-2, 1e-6), (1e-3, 1e-5), (2e-4, 1e-4), (3e-5, 1e-2)])
def test_a_narrow_cone_keeps_its_digits(spread, error):
    q, g, rule, exact = cone(spread)
    got = whole(q, g).numpy()
    np.testing.assert_allclose(got, exact, rtol=error)
    expected = metrics_from_blocks([(slice(0, len(q)), exact)], rule).mAP
    assert 0.3 < expected < 0.99
    assert metrics_from_blocks(distance_blocks(q, g), rule).mAP == pytest.approx(expected, abs=1e-3)
    assert torch.equal(whole(q, g, block_size=5), torch.from_numpy(got))
    order = np.random.default_rng(1).permutation(len(g))
    assert torch.equal(whole(q, g[order]), torch.from_numpy(got[:, order]))


def test_a_collapsed_model_has_equal_distances():
    one = np.random.default_rng(0).normal(size=(1, 300))
    for metric in ("cosine", "euclidean"):
        same = whole(np.repeat(one, 70, 0), np.repeat(one, 211, 0), metric=metric, block_size=33)
        # Points lie around a middle in bfloat16; the error is float32's in the square of their lengths, for every
        # processor's order of adding up.
        point = torch.from_numpy(one / np.linalg.norm(one) if metric == "cosine" else one)
        square = 32 * torch.finfo(torch.float32).eps * float((point - point.bfloat16().double()).square().sum())
        assert (same == same[0, 0]).all() and 0 <= same[0, 0] <= (square if metric == "cosine" else square**0.5)
        assert torch.equal(same[:, :5], whole(np.repeat(one, 70, 0), np.repeat(one, 5, 0), metric=metric))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_gallery_too_large_to_keep_gives_the_same(monkeypatch, metric):
    q, g = features(12, 40, 33), features(13, 500, 33)
    kept = whole(q, g, metric=metric)
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    monkeypatch.setattr(points, "CHUNK_BYTES", 1)
    assert torch.equal(whole(q, g.numpy(), metric=metric), kept)


def test_zero_features_are_at_distance_one_and_any_scale_does():
    assert whole(torch.zeros(1, 4), torch.eye(4)).tolist() == [[1.0] * 4]
    assert whole(torch.zeros(1, 4), torch.zeros(2, 4)).tolist() == [[1.0] * 2]
    q, g = features(14, 5, 20), features(15, 9, 20)
    for scale in (1e30, 1e-30):
        torch.testing.assert_close(whole(scale * q, g / scale), whole(q, g), atol=1e-6, rtol=0)


def test_block_sizes(monkeypatch):
    q, g = features(2, 50, 8), features(3, 10, 8)
    rows = [(r.start, r.stop, len(block)) for r, block in distance_blocks(q, g, block_size=20)]
    assert rows == [(0, 20, 20), (20, 40, 20), (40, 50, 10)]
    assert [r for r, _ in distance_blocks(q, g)] == [slice(0, 50)]
    monkeypatch.setattr(module, "BLOCK_BYTES", 4 * 64 * 33)  # 33 padded rows fit: two whole tiles
    assert [r.stop for r, _ in distance_blocks(q, g)] == [32, 50]
    monkeypatch.setattr(module, "BLOCK_BYTES", 1)
    assert [r.stop for r, _ in distance_blocks(q, g)] == [16, 32, 48, 50]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_distance_depends_on_its_two_features_alone(metric):
    q, g = features(4, 37, 129), features(5, 101, 129)
    reference = whole(q, g, metric=metric)
    for block_size in (1, 2, 17):
        assert torch.equal(whole(q, g, metric=metric, block_size=block_size), reference)
    order = torch.randperm(101, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole(q, g[order], metric=metric), reference[:, order])


def test_kinds_of_input_agree():
    q, g = features(6, 5, 16).bfloat16(), features(7, 9, 16).bfloat16()
    reference = whole(q.float(), g.float())
    assert torch.equal(whole(q, g), reference)
    assert torch.equal(whole(q.float().numpy(), g.double().numpy()), reference)
    assert torch.equal(whole(q.float().requires_grad_(), g), reference)
    backward = g.float().numpy()[::-1]
    assert torch.equal(whole(q, backward), reference.flip(1))
    frozen = g.float().numpy()
    frozen.flags.writeable = False
    assert torch.equal(whole(q, frozen), reference)


def test_full_precision_under_a_trainers_settings():
    q, g = features(8, 20, 256), features(9, 20, 256)
    reference = whole(q, g)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(whole(q, g), reference)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_gpus_products_are_exact(monkeypatch, metric):
    """Its arithmetic on the CPU: the same bits in every order of adding up, and no digits lost."""
    q, g = features(10, 40, 301), features(11, 90, 301)
    q[3] = g[5] = 0
    rounded, (*near, _, exact) = whole(q, g, metric=metric), cone(2e-4)
    monkeypatch.setattr(module, "EXACT_DEVICES", ("cpu",))
    got = whole(q, g, metric=metric)
    assert got[3, 5] == (metric == "cosine")
    rounded[3, 5] = got[3, 5]  # zero to zero: a root of rounded digits
    torch.testing.assert_close(got, rounded, atol=2e-5, rtol=0)
    for block_size in (1, 7):
        assert torch.equal(whole(q, g, metric=metric, block_size=block_size), got)
    monkeypatch.setattr(gpu_distances, "GALLERY_BYTES", 8 * 301 * 40)
    assert torch.equal(whole(q, g, metric=metric), got)
    monkeypatch.setattr(gpu_distances, "BLOCK_BYTES", 1)
    order, columns = torch.randperm(90), torch.randperm(301)
    assert torch.equal(whole(q, g[order], metric=metric), got[:, order])
    if metric == "euclidean":  # for the cosine the lengths are added up too
        assert torch.equal(whole(q[:, columns], g[:, columns], metric=metric), got)
    assert (whole(g[:5], g[:5], metric=metric).diagonal() == 0).all()
    np.testing.assert_allclose(whole(*near).numpy(), exact, rtol=1e-4)


@pytest.mark.parametrize(
    "q, g, options, message",
    [
        (np.zeros((2, 3), np.int64), np.zeros((2, 3)), {}, "query_features: int64 is not a type of features"),
        (torch.zeros(2, 3), [[0.0]], {}, "gallery_features: list is not a type of features"),
        (np.zeros(3), np.zeros((2, 3)), {}, r"query_features: shape \(3,\) is not"),
        (np.zeros((2, 3)), np.zeros((2, 4)), {}, "width 3, gallery_features 4"),
        (np.full((2, 3), np.inf), np.zeros((2, 3)), {}, "query_features: row 0 contains NaN or infinity"),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"block_size": 0}, "block_size: 0"),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"metric": "l2"}, "metric: unknown 'l2': use one of cosine, euclidean"),
    ],
)
def test_mistakes_are_named_at_the_call(q, g, options, message):
    with pytest.raises(UserError, match=message):
        distance_blocks(q, g, **options)
