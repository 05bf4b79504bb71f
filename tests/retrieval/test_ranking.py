"""The top k of every query against a full sort, with the filter and short rows."""

import numpy as np
import pytest
import torch

from modeling_mllmreid.retrieval.matching import SamePerson
from modeling_mllmreid.retrieval.ranking import listed_distances, nearest_in_row, rank_blocks, rank_gallery
from modeling_mllmreid.retrieval.scan import Scan
from modeling_mllmreid.utils.errors import UserError


def oracle(q, g, metric):
    """All distances by the plain formula, in float64, rounded to float32."""
    q, g = q.astype(np.float64), g.astype(np.float64)
    if metric == "cosine":
        q, g = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (q, g))
    squares = ((q[:, None] - g[None]) ** 2).sum(-1)
    return (squares / 2 if metric == "cosine" else np.sqrt(squares)).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equals_a_full_stable_sort(metric):
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(23, 6)).astype(np.float32), rng.normal(size=(90, 6)).astype(np.float32)
    g[40:80] = g[:40]  # ties
    matrix = oracle(q, g, metric)
    order = np.argsort(matrix, axis=1, kind="stable")
    for k in (1, 7, 90):
        ranking = rank_gallery(q, g, k, metric=metric, block_size=5)
        np.testing.assert_array_equal(ranking.indices, order[:, :k])
        np.testing.assert_array_max_ulp(ranking.distances, np.take_along_axis(matrix, order[:, :k], axis=1), 1)
        assert (ranking.indices.dtype, ranking.distances.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_near_ties_have_their_exact_order(metric):
    """In a narrow cone, such as an LLM's, a float32 product orders features by chance."""
    rng = np.random.default_rng(0)
    center = rng.normal(size=512)
    cone = (center + 1e-3 * rng.normal(size=(3000, 512))).astype(np.float32)
    for far in (0, 5):  # images far away make the rounding of the product coarse
        g = np.concatenate([cone, -center[None].repeat(far, 0).astype(np.float32)])
        ranking = rank_gallery(g[:8], g, 50, metric=metric)
        matrix = oracle(g[:8], g, metric)
        np.testing.assert_array_equal(ranking.indices, np.argsort(matrix, axis=1, kind="stable")[:, :50])
        assert (ranking.distances[:, 0] == 0).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_distance_depends_on_its_two_features_alone(metric):
    rng = np.random.default_rng(1)
    g = rng.normal(size=(700, 33)).astype(np.float32)
    g[5] = 0  # no direction
    whole = rank_gallery(g, g, 700, metric=metric)
    table = np.empty((700, 700), np.float32)
    np.put_along_axis(table, whole.indices, whole.distances, axis=1)
    np.testing.assert_array_equal(table, table.T)
    part = rng.permutation(700)[:90]
    ranking = rank_gallery(torch.from_numpy(g[part]), g[part], 90, metric=metric)
    for row, number in enumerate(part):
        np.testing.assert_array_equal(ranking.distances[row], table[number, part[ranking.indices[row]]])
    if metric == "cosine":
        assert (table[5] == 1).all()


def test_the_scan_without_torch_ranks_the_same():
    rng = np.random.default_rng(2)
    q, g = (rng.normal(size=(count, 40)).astype(np.float32) for count in (9, 300))
    g[100:150], g[7] = g[:50], 0
    for k in (1, 20, 300):
        ours, theirs = Scan.of(g).ranking(q, k), rank_gallery(q, g, k)
        np.testing.assert_array_equal(ours.indices, theirs.indices)
        np.testing.assert_array_equal(ours.distances, theirs.distances)
    assert Scan.of(g[:2]).ranking(q[:1], 3).indices[0, 2] == -1
    with pytest.raises(UserError, match="query: has shape .9, 39., the features of the gallery have width 40"):
        Scan.of(g).ranking(q[:, :39], 3)
    with pytest.raises(UserError, match="query: its feature has NaN"):
        Scan.of(g).ranking(np.full((1, 40), np.nan, np.float32), 3)


def test_filter_and_short_rows():
    g = torch.eye(4)
    q = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    ids = [7, 8], [7, 7, 8, 8]
    rule = SamePerson(*ids, [1, -1], [1, 2, 1, -1])
    ranking = rank_gallery(q, g, 4, same_person=rule)
    assert ranking.indices.tolist() == [[1, 2, 3, -1], [3, 2, 1, 0]]
    assert np.isinf(ranking.distances[0, 3]) and np.isfinite(ranking.distances[0, :3]).all()
    assert rank_gallery(q, g, 4, same_person=SamePerson(*ids)).indices.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert rank_gallery(q, g[:2], 3).indices.tolist() == [[0, 1, -1], [1, 0, -1]]
    assert rank_gallery(q, g[:0], 2).indices.tolist() == [[-1, -1]] * 2
    assert rank_gallery(q[:0], g, 2).indices.shape == (0, 2)


def test_distances_of_a_ranking_by_its_own_and_by_other_features():
    rng = np.random.default_rng(2)
    q, g, others = (rng.normal(size=size).astype(np.float32) for size in ((5, 6), (30, 6), (35, 9)))
    rule = SamePerson([7] * 5, [7] * 27 + [8] * 3, [1] * 5, [1] * 27 + [2] * 3)  # three images are left
    ranking = rank_gallery(q, g, 4, same_person=rule)
    assert np.array_equal(
        listed_distances(torch.from_numpy(q), torch.from_numpy(g), ranking.indices), ranking.distances
    )
    found = listed_distances(others[:5], others[5:], ranking.indices)
    assert np.isinf(found[:, 3]).all()
    plain = np.take_along_axis(oracle(others[:5], others[5:], "cosine"), ranking.indices[:, :3], axis=1)
    np.testing.assert_array_max_ulp(found[:, :3], plain, 1)
    others[20, 3] = np.nan
    with pytest.raises(UserError, match="gallery_features: row 15 contains NaN"):
        listed_distances(others[:5], others[5:], ranking.indices)


def test_more_images_are_dropped_than_are_left_over():
    rule = SamePerson([7], [7, 7, 7, 8], [1], [1, 1, 1, 1])
    assert rank_gallery(np.eye(4)[:1], np.eye(4), 2, same_person=rule).indices.tolist() == [[3, -1]]


def test_ties_at_the_border_go_to_the_lower_index():
    row = np.array([0.5, 0.2, 0.5, 0.1, 0.5, np.inf], dtype=np.float32)
    assert nearest_in_row(row, 4).tolist() == [3, 1, 0, 2]
    assert nearest_in_row(row, 5).tolist() == nearest_in_row(row, 6).tolist() == [3, 1, 0, 2, 4]


def test_blocks_from_elsewhere_are_left_as_they_are():
    matrix = np.random.default_rng(0).random((5, 30)).astype(np.float32)
    before = matrix.copy()
    rule = SamePerson(range(5), np.arange(30) % 6, [0] * 5, np.arange(30) % 2)
    got = rank_blocks([(slice(3, 5), matrix[3:]), (slice(0, 3), torch.from_numpy(matrix[:3]))], 5, 7, same_person=rule)
    np.testing.assert_array_equal(matrix, before)
    for number, row in enumerate(matrix):
        kept = np.flatnonzero((np.arange(30) % 6 != number) | (np.arange(30) % 2 != 0))
        assert got.indices[number].tolist() == kept[np.argsort(row[kept])][:7].tolist()


def test_same_person_drops_by_camera_and_by_clothes():
    ids = [1], [1, 1, 1, 2, 1]
    cameras = {"query_camera_ids": [5], "gallery_camera_ids": [5, 6, 6, 5, 6]}
    clothes = {"query_clothes_ids": [0], "gallery_clothes_ids": [1, 0, 1, 0, -1]}
    assert SamePerson(*ids).gallery_images(0)[1].tolist() == [False] * 4
    for columns, dropped in ((cameras, [0]), (clothes, [1]), ({**cameras, **clothes}, [0, 1])):
        same, out = SamePerson(*ids, **columns).gallery_images(0)
        assert same.tolist() == [0, 1, 2, 4] and same[out].tolist() == dropped
    unknown = SamePerson(*ids, query_clothes_ids=[-1], gallery_clothes_ids=[-1] * 5)
    assert not unknown.gallery_images(0)[1].any()


def test_integers_stay_as_they_are_and_images_in_their_order():
    gallery = np.random.default_rng(0).choice([10, 9, 300], 400)
    for make in (list, np.int32, np.uint16, torch.tensor):
        rule = SamePerson(make([300, 9, 10]), make(gallery))
        assert rule.query_persons.tolist() == [300, 9, 10] and rule.query_persons.dtype == np.int64
        assert rule.gallery_persons.dtype == np.int64 and (rule.gallery_persons == gallery).all()
        for row, person in enumerate((300, 9, 10)):
            assert rule.gallery_images(row)[0].tolist() == np.flatnonzero(gallery == person).tolist()
    assert SamePerson(["b", "c"], ["a", "c", "b"]).query_persons.tolist() == [1, 2]


def test_cameras_by_name_and_unknown_ones():
    ids = ["anna"], ["anna"] * 4
    cameras = SamePerson(*ids, ["door"], ["door", "yard", "-1", ""])
    assert cameras.gallery_images(0)[1].tolist() == [True, False, False, False]
    for unknown in ("-1", ""):
        assert not SamePerson(*ids, [unknown], ["door", "yard", "-1", ""]).gallery_images(0)[1].any()
    assert SamePerson(["-1"], ["-1", "7"]).gallery_images(0)[0].tolist() == [0]  # a person may be called so


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: rank_gallery(np.eye(2), np.eye(2), 0), "k: 0"),
        (lambda: rank_gallery(np.eye(2), np.eye(2), 1, block_size=0), "block_size: 0"),
        (lambda: rank_gallery(np.eye(2), np.eye(2), 1, same_person=SamePerson([1], [1, 2])), "has 1 queries, not 2"),
        (lambda: SamePerson([1, 2.5], [1, 2]), "query_person_ids: float64 .* no list of ids"),
        (lambda: SamePerson([1], [1], [1]), "gallery_camera_ids: missing .* no camera filter"),
        (lambda: SamePerson([1], [1], gallery_clothes_ids=[1]), "query_clothes_ids: missing .* no clothes filter"),
        (lambda: SamePerson([1], [1], [1], [1, 2]), "gallery_camera_ids: 2 ids for 1 images"),
        (lambda: SamePerson([1], ["1"]), "person_ids: int64 in the queries, <U1 in the gallery"),
        (lambda: SamePerson([1], [1], [1], ["1"]), "camera_ids: int64 in the queries, <U1 in the gallery"),
        (lambda: SamePerson(np.array(["a", 1], dtype=object), [1]), "query_person_ids: object .* no list of ids"),
        (lambda: SamePerson([[1]], [1]), r"query_person_ids: int64 of shape \(1, 1\) is no list of ids"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UserError, match=message):
        make()
