"""The top k of every query against a full sort, with the filter and short rows."""

import numpy as np
import pytest
import torch

from modeling_mllmreid.errors import UserError
from modeling_mllmreid.retrieval.distances import distance_blocks
from modeling_mllmreid.retrieval.ranking import nearest_in_row, rank_gallery


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equals_a_full_stable_sort(metric):
    rng = np.random.default_rng(0)
    q, g = rng.normal(size=(23, 6)).astype(np.float32), rng.normal(size=(90, 6)).astype(np.float32)
    g[40:80] = g[:40]  # ties
    (_, matrix), *_ = distance_blocks(q, g, metric=metric, block_size=23)
    order = np.argsort(matrix.numpy(), axis=1, kind="stable")
    for k in (1, 7, 90):
        ranking = rank_gallery(q, g, k, metric=metric, block_size=5)
        np.testing.assert_array_equal(ranking.indices, order[:, :k])
        np.testing.assert_array_equal(ranking.distances, np.take_along_axis(matrix.numpy(), order[:, :k], axis=1))
        assert (ranking.indices.dtype, ranking.distances.dtype) == (np.int64, np.float32)


def test_filter_and_short_rows():
    g = torch.eye(4)
    q = torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    ids = {"query_person_ids": [7, 8], "gallery_person_ids": [7, 7, 8, 8]}
    cameras = {"query_camera_ids": [1, -1], "gallery_camera_ids": [1, 2, 1, -1]}
    ranking = rank_gallery(q, g, 4, **ids, **cameras)
    assert ranking.indices.tolist() == [[1, 2, 3, -1], [3, 2, 1, 0]]
    assert np.isinf(ranking.distances[0, 3]) and np.isfinite(ranking.distances[0, :3]).all()
    assert rank_gallery(q, g, 4, **ids).indices.tolist() == [[0, 1, 2, 3], [3, 2, 1, 0]]
    assert rank_gallery(q, g[:2], 3).indices.tolist() == [[0, 1, -1], [1, 0, -1]]
    assert rank_gallery(q, g[:0], 2).indices.tolist() == [[-1, -1]] * 2
    assert rank_gallery(q[:0], g, 2).indices.shape == (0, 2)


def test_ties_at_the_border_go_to_the_lower_index():
    row = np.array([0.5, 0.2, 0.5, 0.1, 0.5, np.inf], dtype=np.float32)
    assert nearest_in_row(row, 4).tolist() == [3, 1, 0, 2]
    assert nearest_in_row(row, 6).tolist() == [3, 1, 0, 2, 4]


@pytest.mark.parametrize(
    "k, ids, message",
    [
        (0, {}, "k: 0"),
        (1, {"query_person_ids": [1, 2]}, "person ids: missing on one side"),
        (1, {"query_camera_ids": [1, 2], "gallery_camera_ids": [1, 2]}, "person ids: missing"),
        (1, {"query_person_ids": [1, 2], "gallery_person_ids": [1]}, "gallery_person_ids: 1 ids for 2 images"),
        (
            1,
            {"query_person_ids": [1, 2.5], "gallery_person_ids": [1, 2]},
            "query_person_ids: float64 .* no list of ids",
        ),
    ],
)
def test_mistakes_in_a_ranking(k, ids, message):
    with pytest.raises(UserError, match=message):
        rank_gallery(torch.eye(2), torch.eye(2), k, **ids)
