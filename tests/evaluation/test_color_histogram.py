"""The colour baseline: what it sees and what it does not."""

import numpy as np
import pytest
from PIL import Image

from modeling_mllmreid.evaluation.protocol import color_histogram, color_histograms


def dressed(top, bottom, size=(48, 96)):
    image = Image.new("RGB", size, top)
    image.paste(bottom, (0, size[1] // 2, size[0], size[1]))
    return image


def test_stripes_and_colours_decide():
    red_blue = color_histogram(dressed("red", "blue"))
    assert red_blue.shape == (6 * 8**3,) and red_blue.dtype == np.float32
    assert np.linalg.norm(red_blue) == pytest.approx(1, abs=1e-6)
    assert red_blue @ color_histogram(dressed("red", "blue", (64, 192))) == pytest.approx(1, abs=1e-6)
    assert red_blue @ color_histogram(dressed("red", "green")) == pytest.approx(0.5, abs=1e-6)
    assert red_blue @ color_histogram(dressed("blue", "red")) == pytest.approx(0, abs=1e-6)


def test_bhattacharyya_of_shares():
    half = Image.new("RGB", (10, 12), "red")
    half.paste("blue", (0, 0, 5, 12))
    assert color_histogram(half) @ color_histogram(Image.new("RGB", (10, 12), "red")) == pytest.approx(
        0.5**0.5, abs=1e-6
    )


def test_many_grey_and_tiny_images():
    images = [Image.new("L", (5, 3), 90), Image.new("RGBA", (8, 16), "red")]
    features = color_histograms(iter(images), stripes=4, bins=3)
    assert features.shape == (2, 4 * 27) and np.allclose(np.linalg.norm(features, axis=1), 1)
    np.testing.assert_array_equal(features[1], color_histogram(images[1], stripes=4, bins=3))
    assert color_histograms([]).shape == (0, 3072)
