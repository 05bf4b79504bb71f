"""mAP, CMC and mINP against a naive evaluator, known values, ties and the edge cases that break toolkits."""

import math

import numpy as np
import pytest
import torch

from modeling_mllmreid.evaluation.metrics import (
    average_precisions,
    averages,
    evaluate_retrieval,
    metrics_from_blocks,
)
from modeling_mllmreid.retrieval.distances import distance_blocks
from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.utils.errors import UserError


def naive(distances, qp, gp, qc, gc, ap):
    """Sorts whole rows and walks them; only right without ties."""
    aps, inps, firsts = [], [], []
    for i, row in enumerate(distances):
        order = [j for j in np.argsort(row) if not (gp[j] == qp[i] and qc[i] != -1 and gc[j] == qc[i])]
        hits, area, last = 0, 0.0, 1.0
        ranks = []
        for rank, j in enumerate(order, start=1):
            hits += gp[j] == qp[i]
            if gp[j] == qp[i]:
                area += hits / rank if ap == "step" else (last + hits / rank) / 2
                ranks.append(rank)
            last = hits / rank
        aps.append(area / hits if hits else math.nan)
        inps.append(hits / ranks[-1] if hits else math.nan)
        firsts.append(ranks[0] if hits else math.nan)
    return np.array(aps), np.array(inps), np.array(firsts)


def problem(seed, queries=40, gallery=150, width=9, persons=12, cameras=4):
    rng = np.random.default_rng(seed)
    qp, gp = rng.integers(0, persons, queries), rng.integers(0, persons - 2, gallery)
    qc, gc = rng.integers(-1, cameras, queries), rng.integers(-1, cameras, gallery)
    centers = rng.normal(size=(persons, width))
    q = centers[qp] + 2 * rng.normal(size=(queries, width))
    g = centers[gp] + 2 * rng.normal(size=(gallery, width))
    return q.astype(np.float32), g.astype(np.float32), qp, gp, qc, gc


def same(a, b):
    assert a.to_dict() == b.to_dict()
    np.testing.assert_array_equal(a.average_precision, b.average_precision)
    np.testing.assert_array_equal(a.inverse_negative_penalty, b.inverse_negative_penalty)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("ap", ["step", "trapezoid"])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_naive_evaluator(metric, ap, seed):
    q, g, qp, gp, qc, gc = problem(seed)
    distances = np.concatenate([block.numpy() for _, block in distance_blocks(q, g, metric=metric)])
    assert all(len(np.unique(row)) == len(row) for row in distances)
    aps, inps, firsts = naive(distances, qp, gp, qc, gc, ap)
    got = evaluate_retrieval(q, g, qp, gp, qc, gc, metric=metric, ap=ap, block_size=7)
    assert 0 < got.num_valid < got.num_queries == 40  # persons 10 and 11 are not in the gallery
    assert got.num_valid == np.isfinite(aps).sum()
    np.testing.assert_allclose(got.average_precision, aps, atol=1e-9)
    np.testing.assert_allclose(got.inverse_negative_penalty, inps, atol=1e-9)
    assert got.mAP == pytest.approx(np.nanmean(aps), abs=1e-9)
    assert got.mINP == pytest.approx(np.nanmean(inps), abs=1e-9)
    valid = firsts[np.isfinite(firsts)]
    assert got.cmc == pytest.approx({k: (valid <= k).mean() for k in (1, 5, 10)}, abs=1e-9)


def test_average_precision_known_values():
    ranks, counts = np.array([1, 3, 6, 1, 2, 2]), np.array([3, 0, 2, 1])
    nan = pytest.approx(np.nan, nan_ok=True)
    assert average_precisions(ranks, counts).tolist() == [pytest.approx((1 + 2 / 3 + 3 / 6) / 3), nan, 1.0, 0.5]
    # Before ranks 1, 3 and 6 the precision was 1 (by definition), 1/2 and 2/5.
    first = ((1 + 1) + (1 / 2 + 2 / 3) + (2 / 5 + 3 / 6)) / 6
    assert average_precisions(ranks, counts, rule="trapezoid").tolist() == [pytest.approx(first), nan, 1.0, 0.25]
    none = np.empty(0, np.int64)
    assert len(average_precisions(none, none)) == 0 and np.isnan(average_precisions(none, np.zeros(2, np.int64))).all()


@pytest.mark.filterwarnings("error")
def test_some_queries_of_which_none_has_a_match_have_no_averages():
    got = averages([np.empty(0, np.int64)] * 2, np.full(2, np.nan), ranks=(1, 5))
    assert (got.num_queries, got.num_valid) == (2, 0) and list(got.cmc) == [1, 5]
    assert np.isnan([got.mAP, got.mINP, *got.cmc.values(), *got.inverse_negative_penalty]).all()
    assert np.isnan(got.first_match_rank).all() and got.to_dict()["rank5"] is None


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_collapsed_features_do_not_score(metric, value):
    """All features equal, at sizes and widths where a plain matrix product rounds differently at its edges."""
    for size, width in ((5, 37), (17, 768), (101, 1000)):
        q, g = np.full((3, width), value, np.float32), np.full((size, width), value, np.float32)
        g_ids = np.arange(size)
        g_ids[[0, size // 2, size - 1]] = 1000
        got = evaluate_retrieval(q, g, [1000] * 3, g_ids, metric=metric, ranks=(1, size - 3, size - 2))
        assert got.cmc == {1: 0.0, size - 3: 0.0, size - 2: 1.0}
        assert got.mAP == pytest.approx(np.mean([1 / (size - 2), 2 / (size - 1), 3 / size]))
        assert got.mINP == pytest.approx(3 / size)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_order_and_block_size_change_nothing(metric):
    q, g, qp, gp, qc, gc = problem(3, gallery=157, width=333)
    q, g = np.round(q), np.round(g)
    g[50:100] = g[:50]  # exact ties between persons
    whole = evaluate_retrieval(q, g, qp, gp, qc, gc, metric=metric)
    for block_size in (1, 3, 16, 39, 1000):
        same(whole, evaluate_retrieval(q, g, qp, gp, qc, gc, metric=metric, block_size=block_size))
    order = np.random.default_rng(0).permutation(len(g))
    same(whole, evaluate_retrieval(q, g[order], qp, gp[order], qc, gc[order], metric=metric))
    one = evaluate_retrieval(q[:1], g, qp[:1], gp, qc[:1], gc, metric=metric)
    assert one.average_precision[0] == whole.average_precision[0]


def test_camera_rule():
    g, ids = np.eye(3, dtype=np.float32), [7, 8, 7]
    q = np.array([[1.0, 0.5, 0.2]], dtype=np.float32)
    score = lambda qc, gc: evaluate_retrieval(q, g, [7], ids, qc, gc, ranks=(1,))  # noqa: E731
    assert score(None, None).cmc[1] == 1.0
    assert score([1], [1, 2, 2]).cmc[1] == 0.0  # the nearest is the query's own camera's: no rank, not a hit
    assert score([1], [1, 2, 2]).mAP == 0.5
    assert score([1], [2, 1, 1]).mAP == 1.0  # a stranger of the same camera stays; the far match is dropped
    assert score([-1], [-1, -1, -1]).mAP == pytest.approx((1 + 2 / 3) / 2)  # unknown equals nothing
    assert score([1], [-1, 1, 1]).mAP == 1.0


def test_clothes_in_the_cameras_place():
    """The rule of clothes-changing sets: matches of the query's own clothes are dropped."""
    g = np.array([[1, 0], [0.9, 0.1], [0.8, 0.3], [0.5, 0.5]], dtype=np.float32)
    got = evaluate_retrieval(g[:1], g, [7], [7, 8, 7, 7], [3], [3, 3, 3, 4], ranks=(1, 2))
    assert got.match_ranks[0].tolist() == [2] and got.mAP == 0.5 and got.cmc == {1: 0.0, 2: 1.0}


@pytest.mark.filterwarnings("error")
def test_edges_have_right_answers():
    eye = np.eye(3, dtype=np.float32)
    short = evaluate_retrieval(eye[:1], eye[:2], [1], [2, 1])
    assert short.cmc == {1: 0.0, 5: 1.0, 10: 1.0} and short.mAP == 0.5
    lone = evaluate_retrieval(eye[:1], eye[:1], [1], [1])
    assert lone.mAP == lone.mINP == lone.cmc[1] == 1.0
    some = evaluate_retrieval(eye[:2], eye[:2], [1, 9], [1, 2])
    assert (some.num_queries, some.num_valid, some.mAP) == (2, 1, 1.0)
    assert (
        np.isnan(some.average_precision).tolist() == np.isnan(some.inverse_negative_penalty).tolist() == [False, True]
    )


@pytest.mark.parametrize(
    "queries, gallery, cameras, message",
    [
        (2, 0, None, "2 queries and 0 gallery images: give at least one"),
        (0, 2, None, "0 queries and 2 gallery images: give at least one"),
        (
            2,
            3,
            None,
            r"none of the 2 persons of the queries is among the 1 of the gallery: use the same",
        ),
        (
            3,
            2,
            1,
            r"same-camera filter .* all 2 of the queries' persons \(the gallery has 1 cameras\): leave the camera",
        ),
    ],
)
def test_no_query_with_a_match_says_why(queries, gallery, cameras, message):
    eye, persons = np.eye(3, dtype=np.float32), ([5, 5, 5] if cameras else [1, 2, 3])
    sides = [cameras] * queries if cameras else None, [cameras] * gallery if cameras else None
    with pytest.raises(UserError, match=message):
        evaluate_retrieval(eye[:queries], eye[:gallery], persons[:queries], [5] * gallery, *sides)


def test_kinds_of_ids_agree():
    q, g, qp, gp, qc, gc = problem(7)
    whole = evaluate_retrieval(q, g, qp, gp, qc, gc)
    name = np.vectorize("person {}".format)
    for make in (np.int32, np.uint8, torch.tensor, list, name, lambda ids: name(ids).astype(object)):
        same(whole, evaluate_retrieval(q, g, make(qp), make(gp), qc.astype(np.int32), gc))
    seen = qc >= 0  # a camera's name is never unknown
    known = evaluate_retrieval(q[seen], g, qp[seen], gp, qc[seen], gc)
    same(known, evaluate_retrieval(q[seen], g, name(qp[seen]), name(gp), name(qc[seen]), name(gc)))


def test_200_random_problems():
    """Sizes, widths, identities and cameras of every adversarial shape, against the naive evaluator."""
    rng = np.random.default_rng(0)
    checked, tied, seed = 0, 0, 0
    while checked < 200:
        seed += 1
        queries, gallery = (int(x) for x in rng.choice([1, 2, 3, 15, 16, 17, 33], 2))
        gallery *= int(rng.choice([1, 1, 4]))
        sizes = {"persons": int(rng.choice([3, 4, 9, 60])), "cameras": int(rng.choice([0, 1, 2, 8]))}
        q, g, qp, gp, qc, gc = problem(seed, queries, gallery, int(rng.choice([2, 7, 64, 257])), **sizes)
        metric, ap = ("cosine", "euclidean")[seed % 2], ("step", "trapezoid")[seed // 2 % 2]
        distances = np.concatenate([block.numpy() for _, block in distance_blocks(q, g, metric=metric)])
        if any(len(np.unique(row)) < len(row) for row in distances):
            tied += 1
            continue
        aps, inps, firsts = naive(distances, qp, gp, qc, gc, ap)
        valid = np.isfinite(aps)
        if not valid.any():
            with pytest.raises(UserError, match="no query has a match"):
                evaluate_retrieval(q, g, qp, gp, qc, gc, metric=metric, ap=ap)
            continue
        checked += 1
        options = {"ranks": (1, 2, 5, 1000), "block_size": int(rng.choice([1, 5, 1000]))}
        got = evaluate_retrieval(q, g, qp, gp, qc, gc, metric=metric, ap=ap, **options)
        np.testing.assert_allclose(got.average_precision, aps, rtol=0, atol=1e-9)
        np.testing.assert_allclose(got.inverse_negative_penalty, inps, rtol=0, atol=1e-9)
        np.testing.assert_array_equal(got.first_match_rank, firsts)
        assert got.mAP == pytest.approx(np.nanmean(aps), abs=1e-9)
        assert got.cmc == pytest.approx({k: (firsts[valid] <= k).mean() for k in (1, 2, 5, 1000)}, abs=1e-9)
    assert tied < 40 and seed < 350


def test_memory_mapped_galleries(tmp_path, monkeypatch):
    """Read chunk by chunk and not kept, as where the gallery is larger than memory."""
    q, g, qp, gp, qc, gc = problem(8, gallery=700)
    np.save(tmp_path / "gallery.npy", g)
    monkeypatch.setattr("modeling_mllmreid.retrieval.points.CHUNK_BYTES", 1)
    for kept, mode in ((0, "r"), (0, "c"), (2**20, "r+")):
        monkeypatch.setattr("modeling_mllmreid.retrieval.distances.KEPT_BYTES", kept)
        mapped = np.load(tmp_path / "gallery.npy", mmap_mode=mode)
        for metric in ("cosine", "euclidean"):
            whole = evaluate_retrieval(q, g, qp, gp, qc, gc, metric=metric)
            same(whole, evaluate_retrieval(q, mapped, qp, gp, qc, gc, metric=metric, block_size=9))
        assert isinstance(mapped, np.memmap) and np.array_equal(mapped, g)


def test_duplicate_images():
    """A copy of a query in the gallery ties with its own copies only; a stranger's copy of it counts as nearer."""
    g = np.eye(4, dtype=np.float32)[[0, 0, 0, 1]]
    got = evaluate_retrieval(g[:1], g, [1], [1, 1, 2, 1])
    assert got.match_ranks[0].tolist() == [2, 3, 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_features_are_measured_in_float32(dtype):
    q, g, qp, gp, qc, gc = problem(4)
    q, g = torch.from_numpy(q).to(dtype), torch.from_numpy(g).to(dtype)
    got = evaluate_retrieval(q, g, torch.tensor(qp), torch.tensor(gp), torch.tensor(qc), torch.tensor(gc))
    same(got, evaluate_retrieval(q.float().numpy(), g.float().numpy(), qp, gp, qc, gc))


def test_blocks_from_elsewhere():
    q, g, qp, gp, qc, gc = problem(5)
    ids = SamePerson(qp, gp, qc, gc)
    (_, matrix), *_ = distance_blocks(q, g, block_size=len(q))
    matrix = matrix.numpy().copy()
    before = matrix.copy()
    whole = metrics_from_blocks([(slice(0, 40), matrix)], ids)
    same(whole, evaluate_retrieval(q, g, qp, gp, qc, gc))
    np.testing.assert_array_equal(matrix, before)
    parts = [(slice(25, 40), matrix[25:]), (slice(0, 25), torch.from_numpy(matrix[:25]))]
    same(whole, metrics_from_blocks(iter(parts), ids))
    far = np.full((1, 3), np.inf)
    assert metrics_from_blocks([(slice(0, 1), far)], SamePerson([1], [1, 2, 3])).mAP == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="query 30 comes 0 times"):
        metrics_from_blocks([(slice(0, 30), matrix[:30])], ids)
    with pytest.raises(UserError, match="query 2 comes 2 times"):
        metrics_from_blocks([(slice(0, 40), matrix), (slice(2, 3), matrix[2:3])], ids)
    with pytest.raises(UserError, match=r"shape \(40, 149\), not \(40, 150\)"):
        metrics_from_blocks([(slice(0, 40), matrix[:, 1:])], ids)
    matrix[3, 4] = np.nan
    with pytest.raises(UserError, match="are NaN"):
        metrics_from_blocks([(slice(0, 40), matrix)], ids)


def test_users_mistakes_are_named():
    q, g, qp, gp, qc, gc = problem(6)
    nan = g.copy()
    nan[[5, 9], 2] = np.nan
    for message, arguments, options in (
        ("query_features: row 0 contains NaN", (q.astype(float) * 1e300, g, qp, gp), {}),
        (r"gallery_features: row 5 contains NaN or infinity \(2 such rows\)", (q, nan, qp, gp), {}),
        ("query_person_ids: 39 ids for 40 features", (q, g, qp[1:], gp), {}),
        ("gallery_person_ids: 149 ids for 150 features", (q, g, qp, gp[1:]), {}),
        ("query_camera_ids: 39 ids for 40 images", (q, g, qp, gp, qc[1:], gc), {}),
        ("gallery_camera_ids: missing", (q, g, qp, gp, qc), {}),
        ("gallery_person_ids: .* no list of ids", (q, g, qp, gp + 0.5), {}),
        ("person_ids: int64 in the queries, <U21 in the gallery", (q, g, qp, gp.astype(str)), {}),
        ("query_person_ids: bool of shape", (q, g, qp > 3, gp), {}),
        ("ap: unknown 'area'", (q, g, qp, gp), {"ap": "area"}),
        ("metric: unknown 'l1'", (q, g, qp, gp), {"metric": "l1"}),
        ("below 1", (q, g, qp, gp), {"ranks": (0, 5)}),
        ("block_size: 0", (q, g, qp, gp), {"block_size": 0}),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_retrieval(*arguments, **options)


def test_metrics_are_printed_in_one_line():
    features = np.eye(3, dtype=np.float32)
    assert repr(evaluate_retrieval(features[:2], features, [1, 2], [1, 2, 2])) == (
        "RetrievalMetrics(mAP=0.9167, rank1=1.0000, rank5=1.0000, rank10=1.0000, mINP=0.8333, 2 queries)"
    )
