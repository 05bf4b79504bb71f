"""Augmentation: the size, flip, shift, colours, sharpness and erased area, and one result for one sample."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from modeling_mllmreid.data.augmentation import PersonAugmentation, rng_for
from modeling_mllmreid.utils.errors import UserError


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("size", [(126, 252), (1, 1), (300, 40)])
def test_output_size_is_fixed(size):
    augmentation = PersonAugmentation(252, 126)
    for position in range(5):
        image = augmentation.transform_image(noise(*size), rng_for(0, 0, position, 0))
        assert (image.size, image.mode) == ((126, 252), "RGB")
    assert augmentation.transform_image(Image.new("L", size), rng_for(0, 0, 0, 0)).mode == "RGB"


def test_resize_and_flip():
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
    usual = PersonAugmentation(252, 126)
    assert (usual.flip_probability, usual.pad, usual.erase_probability) == (0.5, 10, 0.5)
    assert (usual.erase_area, usual.erase_ratio) == ((0.02, 0.33), (0.3, 3.3))


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


def jittered(image, jitter, position):
    augmentation = PersonAugmentation(*image.size[::-1], flip=0, pad=0, color_jitter=jitter)
    return np.asarray(augmentation.transform_image(image, rng_for(0, 0, position, 0)), dtype=float)


def test_color_jitter_changes_brightness_contrast_and_saturation_up_to_its_size():
    pixels = np.full((8, 4, 3), 100, dtype=np.uint8)
    gray = [jittered(Image.fromarray(pixels), 0.3, position)[0, 0] for position in range(300)]
    # A uniform gray has neither contrast nor saturation.
    assert all(np.ptp(pixel) == 0 for pixel in gray)
    assert 69 <= np.min(gray) < 73 and 127 < np.max(gray) <= 131
    assert np.allclose(np.quantile(gray, [0.25, 0.5, 0.75]), [85, 100, 115], atol=4)
    # Contrast: the spread of grays relative to their mean. Saturation: that of the channels, on one colour.
    pixels[:4] = 60
    stripes = [jittered(Image.fromarray(pixels), 0.3, position) for position in range(300)]
    contrasts = np.array([image.std() / image.mean() for image in stripes]) / (20 / 80)
    pixels[:] = (90, 60, 90)
    colored = [jittered(Image.fromarray(pixels), 0.3, position)[0, 0] for position in range(300)]
    # A change of contrast moves the channels of a colour too, by the same factor.
    saturations = np.array([(pixel[0] - pixel[1]) / pixel.mean() for pixel in colored]) / (30 / 80) / contrasts
    for ratios in (contrasts, saturations):
        assert 0.65 < ratios.min() < 0.75 and 1.25 < ratios.max() < 1.35 and 0.95 < ratios.mean() < 1.05
    # The three factors are drawn apart.
    factors = np.array([[image.mean() for image in stripes], contrasts, saturations])
    assert abs(np.corrcoef(factors)[np.triu_indices(3, 1)]).max() < 0.2


def test_downscaling_removes_details_of_two_pixels_at_most():
    augmentation = PersonAugmentation(64, 32, flip=0, pad=0, downscale=1)

    def details(period):
        """The spread of stripes of a period in pixels, relative to the original, for 100 samples."""
        stripes = Image.fromarray(np.where(np.arange(64)[:, None] % period < period / 2, 80, 160).astype(np.uint8))
        image = stripes.resize((32, 64), Image.Resampling.NEAREST).convert("RGB")
        made = [augmentation.transform_image(image, rng_for(0, 0, position, 0)) for position in range(100)]
        assert {(crop.size, crop.mode) for crop in made} == {((32, 64), "RGB")}
        return np.array([np.std(crop) for crop in made]) / np.std(image)

    fine, coarse = details(2), details(16)
    assert fine.min() < 0.1 and (fine < 0.5).mean() > 0.5 and coarse.min() > 0.85


def test_frequency_of_downscaling():
    augmentation, image = PersonAugmentation(16, 8, flip=0, pad=0, downscale=0.3), noise(8, 16)
    crops = [augmentation.transform_image(image, rng_for(0, 0, position, 0)) for position in range(500)]
    changed = np.mean([not np.array_equal(crop, image) for crop in crops])
    # A scale near 1 leaves a small image as it is.
    assert 0.22 < changed < 0.33


def test_color_jitter_and_downscaling_leave_flip_and_shift_as_they_are():
    """A run with both at 0 draws the numbers of older versions; the padding stays black."""
    white = Image.new("RGB", (32, 64), "white")
    plain, changed = PersonAugmentation(64, 32), PersonAugmentation(64, 32, color_jitter=0.2, downscale=1)
    older, now, other = (rng_for(0, 0, 0, 0) for _ in range(3))
    older.random(), older.integers(-4, 5, size=2)
    for position in range(20):
        images = [each.transform_image(white, rng_for(0, 0, position, 0)) for each in (plain, changed)]
        black = [np.asarray(image).max(axis=2) == 0 for image in images]
        assert np.array_equal(*black)
    plain.transform_image(white, now), changed.transform_image(white, other)
    assert older.random() == now.random() != other.random()


def test_generator_depends_on_the_sample_only():
    draws = {key: rng_for(*key).random() for key in np.ndindex(2, 2, 2, 2)}
    assert len(set(draws.values())) == 16
    assert rng_for(1, 0, 1, 1).random() == draws[1, 0, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip is 1.5: give a probability"),
        ({"erase": -0.1}, "erase is -0.1: give a probability"),
        ({"downscale": 2}, "downscale is 2: give a probability"),
        ({"color_jitter": 1}, "color_jitter is 1: give a relative change, 0 or more and below 1"),
        ({"color_jitter": -0.1}, "color_jitter is -0.1: give a relative change, 0 or more and below 1"),
        ({"pad": -1}, "pad is -1: give 0 or more pixels"),
        ({"erase_area": (0.4, 0.3)}, r"erase_area is \(0.4, 0.3\): give two shares"),
        ({"erase_area": (0, 0.3)}, r"erase_area is \(0, 0.3\): give two shares"),
        ({"erase_area": (0.4, 1)}, r"erase_area is \(0.4, 1\): give two shares"),
        ({"erase_ratio": (3, 2)}, r"erase_ratio is \(3, 2\): give two positive ratios"),
        ({"erase_ratio": (0, 3)}, r"erase_ratio is \(0, 3\): give two positive ratios"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(UserError, match=message):
        PersonAugmentation(252, 126, **options)


def test_areas_are_uniform_and_ratios_log_uniform():
    # None of these boxes is too large for its image, which would turn the draws to others.
    augmentation = PersonAugmentation(200, 200, erase=1, erase_area=(0.05, 0.2))
    areas, ratios = [], []
    for position in range(1000):
        zero = augmentation.erase(np.ones((1, 200, 200)), rng_for(0, 0, position, 0))[0] == 0
        areas.append(zero.mean())
        ratios.append(zero.any(axis=1).sum() / zero.any(axis=0).sum())
    quarters = np.array([0.1, 0.25, 0.5, 0.75, 0.9])
    assert np.allclose(np.quantile(areas, quarters), 0.05 + 0.15 * quarters, atol=0.01)
    assert np.allclose(np.quantile(np.log(ratios), quarters), np.log(0.3) + np.log(11) * quarters, atol=0.1)
    assert abs(np.corrcoef(areas, np.log(ratios))[0, 1]) < 0.1


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_frequency_of_flips_and_erasures(share):
    augmentation = PersonAugmentation(8, 4, flip=share, pad=0, erase=share)
    image = noise(4, 8)
    flipped = erased = both = 0
    for position in range(1000):
        rng = rng_for(0, 0, position, 0)
        got = (
            not np.array_equal(augmentation.transform_image(image, rng), image),
            bool((augmentation.erase(np.ones((3, 8, 4)), rng) == 0).any()),
        )
        flipped, erased, both = flipped + got[0], erased + got[1], both + all(got)
    assert abs(flipped / 1000 - share) < 0.05 and abs(erased / 1000 - share) < 0.05
    assert abs(both / 1000 - share**2) < 0.05


class Least:
    """A generator whose every number is the least it can be."""

    def random(self):
        return 0.0

    def uniform(self, low, high):
        return low

    def integers(self, *_, size=None):
        return 0 if size is None else np.full(size, 0)


def test_probability_zero_changes_nothing():
    none = PersonAugmentation(64, 32, flip=0, pad=0, erase=0)
    image = noise(32, 64)
    assert np.array_equal(none.transform_image(image, Least()), image)
    assert (none.erase(np.ones((3, 64, 32)), Least()) == 1).all()
    assert (PersonAugmentation(64, 32, erase=0.1).erase(np.ones((3, 64, 32)), Least()) == 0).any()


def test_erased_boxes_cover_all_positions_but_not_the_whole_image():
    def boxes(tall, wide, height=12, width=6):
        """(top, left, tall, wide) of the boxes of one size; None where nothing was erased."""
        area, ratio = tall * wide / (height * width), tall / wide
        made = PersonAugmentation(height, width, erase=1, erase_area=(area, area), erase_ratio=(ratio, ratio))
        found = set()
        for position in range(300):
            zero = made.erase(np.ones((3, height, width)), rng_for(0, 0, position, 0))[0] == 0
            rows, columns = np.flatnonzero(zero.any(1)), np.flatnonzero(zero.any(0))
            assert zero.sum() == len(rows) * len(columns)
            found.add((rows[0], columns[0], len(rows), len(columns)) if zero.any() else None)
        return found

    # Up to the last row and the last column.
    assert boxes(9, 3) == {(top, left, 9, 3) for top in range(4) for left in range(4)}
    assert boxes(1, 5) == {(top, left, 1, 5) for top in range(12) for left in range(2)}
    assert boxes(11, 1) == {(top, left, 11, 1) for top in range(2) for left in range(6)}
    assert boxes(12, 3) == boxes(5, 6) == {None}
    # A box of no height or no width is drawn again.
    for size in ((4, 8), (8, 4)):
        small = PersonAugmentation(*size, erase=1, erase_area=(0.02, 0.05))
        assert all((small.erase(np.ones((3, *size)), rng_for(0, 0, i, 0)) == 0).any() for i in range(300))


def test_augmentation_differs_by_position_and_epoch():
    augmentation, image = PersonAugmentation(64, 32), noise(32, 64)

    def crop(**place):
        rng = rng_for(**{"seed": 0, "epoch": 0, "position": 0, "index": 0, **place})
        return np.asarray(augmentation.transform_image(image, rng)).tobytes()

    for name in ("seed", "epoch", "position", "index"):
        assert len({crop(**{name: value}) for value in range(4)}) > 2, name
