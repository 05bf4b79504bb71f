"""Tracks pooled to one feature each."""

import numpy as np
import pytest

from modeling_mllmreid.evaluation.protocol import pool_tracks
from modeling_mllmreid.utils.errors import UserError


def test_means_of_tracks_in_the_order_of_their_first_image():
    features = np.array([[1, 0], [0, 1], [0, 1], [0.6, 0.8], [1, 0]], dtype=np.float32)
    pooled, first = pool_tracks(features, [9, -1, 9, 2, -1], [5, 6, 5, 7, 8], ["a", "b", "a", "c", "d"])
    np.testing.assert_allclose(pooled, [[0.5**0.5, 0.5**0.5], [0, 1], [0.6, 0.8], [1, 0]], atol=1e-6)
    assert pooled.dtype == np.float32 and first.tolist() == [0, 1, 3, 4]
    assert features[0].tolist() == [1, 0]
    alone, first = pool_tracks(features, [-1] * 5, np.arange(5))
    np.testing.assert_allclose(alone, features, atol=1e-7)
    assert first.tolist() == [0, 1, 2, 3, 4]
    assert pool_tracks(features[:0], [])[0].shape == (0, 2)


def test_mistakes():
    with pytest.raises(UserError, match="track 3: holds ids 1 and 2: number tracks so"):
        pool_tracks(np.eye(3), [3, 3, -1], [1, 2, 2])
    with pytest.raises(UserError, match=r"ids of shape \(2,\) for 3 features"):
        pool_tracks(np.eye(3), [3, 3, -1], [1, 2])
