"""The z-buffer against a loop over pixels and triangles."""

import numpy as np

from modeling_mllmreid.synthetic.rendering.raster import rasterize


def naive(x, y, inverse_depth, shown, faces, size):
    """Pixel -> the nearest triangle there."""
    found = {}
    for row in range(size[0]):
        for column in range(size[1]):
            best = 0.0
            for number, (a, b, c) in enumerate(faces):
                matrix = np.array([[x[a], x[b], x[c]], [y[a], y[b], y[c]], [1, 1, 1]], float)
                if abs(np.linalg.det(matrix)) < 1e-6:
                    continue
                weights = np.linalg.solve(matrix, [column + 0.5, row + 0.5, 1])
                if weights.min() < 0 or weights @ shown[[a, b, c]] <= 0:
                    continue
                depth = weights @ inverse_depth[[a, b, c]]
                if depth > best:
                    best, found[row * size[1] + column] = depth, (number, weights)
    return found


def test_the_nearest_shown_triangle_at_every_pixel():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(-4, 20, 40).astype(np.float32), rng.uniform(-4, 28, 40).astype(np.float32)
    depth, shown = rng.uniform(0.1, 1, 40).astype(np.float32), rng.uniform(-0.4, 1, 40).astype(np.float32)
    faces = rng.permutation(40)[:39].reshape(13, 3)
    size = (24, 16)
    seen = rasterize(x, y, depth, shown, faces, size)
    expected = naive(x, y, depth, shown, faces, size)
    assert len(expected) > 150
    assert seen.pixel.tolist() == sorted(expected)
    for pixel, face, weights in zip(seen.pixel, seen.face, seen.weights, strict=True):
        assert face == expected[pixel][0]
        np.testing.assert_allclose(weights, expected[pixel][1], atol=1e-3)


def test_nothing_in_the_image_is_no_fragment():
    far = np.array([100, 110, 105], np.float32)
    seen = rasterize(far, far[::-1], np.ones(3, np.float32), np.ones(3), np.array([[0, 1, 2]]), (8, 8))
    assert len(seen.pixel) == 0
