"""Augmentation: exact size, flip, shift, erasing in its ranges, and the same result for the same sample."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from modeling_mllmreid.data.augmentation import PersonAugmentation, rng_for
from modeling_mllmreid.errors import UserError


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(126, 252), (1, 1), (300, 40)])
def test_output_has_the_size_whatever_the_input(size):
    augmentation = PersonAugmentation(252, 126)
    for position in range(5):
        image = augmentation.transform_image(noise(*size), rng_for(0, 0, position, 0))
        assert (image.size, image.mode) == ((126, 252), "RGB")
    assert augmentation.transform_image(Image.new("L", size), rng_for(0, 0, 0, 0)).mode == "RGB"


def test_resize_and_flip_alone():
    image = noise(50, 100)
    plain = image.resize((32, 64), Image.Resampling.BICUBIC)
    for flip, expected in ((0.0, plain), (1.0, ImageOps.mirror(plain))):
        got = PersonAugmentation(64, 32, flip=flip, pad=0).transform_image(image, rng_for(0, 0, 0, 0))
        assert np.array_equal(got, expected)


def test_shift_is_padding_with_black_and_cropping():
    image = noise(126, 252)
    padded = np.pad(np.asarray(image), ((10, 10), (10, 10), (0, 0)))
    augmentation = PersonAugmentation(252, 126, flip=0)
    shifts = set()
    for position in range(200):
        got = np.asarray(augmentation.transform_image(image, rng_for(0, 0, position, 0)))
        black = (got == 0).all(axis=2)
        rows, columns = np.flatnonzero(black.all(axis=1)), np.flatnonzero(black.all(axis=0))
        top = 10 - len(rows) if 0 in rows else 10 + len(rows)
        left = 10 - len(columns) if 0 in columns else 10 + len(columns)
        assert np.array_equal(got, padded[top : top + 252, left : left + 126])
        shifts.add((top, left))
    assert {top for top, _ in shifts} == {left for _, left in shifts} == set(range(21))


def test_padding_shrinks_with_small_inputs():
    assert [PersonAugmentation(2 * w, w).pad for w in (126, 64, 28)] == [10, 8, 3]
    assert PersonAugmentation(252, 126, pad=14).pad == 14


@pytest.mark.parametrize("kind", [torch.tensor, np.array])
def test_erasing_sets_one_rectangle_in_its_ranges_to_zero(kind):
    pixels = kind(np.full((3, 120, 60), 2.0, dtype=np.float32))
    augmentation = PersonAugmentation(120, 60)
    erased_count, areas, ratios = 0, [], []
    for position in range(1000):
        erased = augmentation.erase(pixels, rng_for(0, 0, position, 0))
        assert type(erased) is type(pixels) and erased.dtype == pixels.dtype and (pixels == 2).all()
        zero = np.asarray(erased)[0] == 0
        assert (np.asarray(erased) == np.where(zero, 0, 2)).all()
        if zero.any():
            erased_count += 1
            height, width = zero.any(axis=1).sum(), zero.any(axis=0).sum()
            assert zero.sum() == height * width
            areas.append(zero.mean())
            ratios.append(height / width)
    assert 430 < erased_count < 570
    assert 0.018 < min(areas) < 0.05 and 0.28 < max(areas) < 0.345
    assert 0.27 < min(ratios) < 0.45 and 2.6 < max(ratios) < 3.7
    assert not np.asarray(PersonAugmentation(120, 60, erase=0).erase(pixels, rng_for(0, 0, 0, 0)) == 0).any()


def test_one_sample_has_one_generator():
    draws = {key: rng_for(*key).random() for key in np.ndindex(2, 2, 2, 2)}
    assert len(set(draws.values())) == 16
    assert rng_for(1, 0, 1, 1).random() == draws[1, 0, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip is 1.5: give a probability"),
        ({"erase": -0.1}, "erase is -0.1: give a probability"),
        ({"pad": -1}, "pad is -1: give 0 or more pixels"),
        ({"erase_area": (0.4, 0.3)}, r"erase_area is \(0.4, 0.3\): give two shares"),
        ({"erase_ratio": (0, 3)}, r"erase_ratio is \(0, 3\): give two positive ratios"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(UserError, match=message):
        PersonAugmentation(252, 126, **options)
