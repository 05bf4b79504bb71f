"""Relevance drawn on a crop: orange where crops are alike, blue where they differ, and the crop below it."""

import numpy as np
import pytest
from PIL import Image, ImageColor

from modeling_mllmreid.retrieval.overlay import ALIKE, DIFFERENT, STRONGEST, draw_relevance
from modeling_mllmreid.utils.errors import UserError

GREY = Image.new("RGB", (40, 80), (128, 128, 128))


def blended(colour: str, share: float) -> np.ndarray:
    """A colour over grey pixels of 128."""
    opacity = STRONGEST * share
    return (1 - opacity) * 128 + opacity * np.array(ImageColor.getrgb(colour))


def test_each_place_has_its_colour_and_strength():
    relevance = np.zeros((4, 2), dtype=np.float32)
    relevance[0, 1], relevance[3, 0] = 0.2, -0.4
    drawn = np.asarray(draw_relevance(GREY, relevance), dtype=np.float64)
    assert drawn.shape == (80, 40, 3)
    np.testing.assert_allclose(drawn[2, 37], blended(ALIKE, 0.5), atol=1)
    np.testing.assert_allclose(drawn[77, 2], blended(DIFFERENT, 1), atol=1)
    assert (drawn[2, 2] == 128).all() and (drawn[77, 37] == 128).all()


def test_drawings_of_one_limit_can_be_compared():
    for value, limit, share in ((0.1, 0.2, 0.5), (0.1, 0.05, 1.0), (0.1, None, 1.0), (0.0, None, 0.0)):
        drawn = draw_relevance(GREY, np.full((2, 1), value), limit=limit)
        np.testing.assert_allclose(drawn.getpixel((20, 40)), blended(ALIKE, share), atol=1)


def test_the_crop_stays_visible_and_keeps_no_colour_of_its_own(tmp_path):
    pixels = np.zeros((80, 40, 3), dtype=np.uint8)
    pixels[:, ::2] = (255, 120, 0)
    Image.fromarray(pixels).save(tmp_path / "crop.png")
    strong = np.asarray(draw_relevance(tmp_path / "crop.png", np.full((2, 1), -1.0)), dtype=int)
    assert (strong[:, ::2].sum(axis=2) - strong[:, 1::2].sum(axis=2) > 100).all()
    without = np.asarray(draw_relevance(tmp_path / "crop.png", np.zeros((2, 1))))
    assert (without == without[..., :1]).all() and without.std() > 50


def luminance(colour: np.ndarray) -> float:
    """Relative luminance of a colour, by WCAG 2."""
    linear = np.where(colour <= 10, colour / 3294.6, ((colour / 255 + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_the_two_colours_differ_for_people_who_see_no_red_or_no_green():
    """They differ in blue, which these people see, and in lightness, which everybody sees."""
    orange, blue = (np.array(ImageColor.getrgb(colour), dtype=float) for colour in (ALIKE, DIFFERENT))
    assert blue[2] - orange[2] > 200
    assert (luminance(orange) + 0.05) / (luminance(blue) + 0.05) > 1.5


def test_a_photo_is_turned_upright():
    photo = Image.new("RGB", (80, 40))
    photo.getexif()[274] = 6
    assert draw_relevance(photo, np.ones((2, 1))).size == (40, 80)


def test_mistakes(tmp_path):
    for relevance in (np.zeros(3), np.zeros((0, 2)), np.full((2, 2), np.nan)):
        with pytest.raises(UserError, match=r"^relevance of shape \[.*\]: give finite numbers \(h, w\)$"):
            draw_relevance(GREY, relevance)
    for limit in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="^limit .*: give a number above 0"):
            draw_relevance(GREY, np.ones((2, 1)), limit=limit)
    with pytest.raises(UserError, match=r"gone\.jpg: no such image"):
        draw_relevance(tmp_path / "gone.jpg", np.ones((2, 1)))
