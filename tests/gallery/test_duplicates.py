import io

import numpy as np
from PIL import Image

from modeling_mllmreid.gallery.duplicates import near_duplicates, same_picture


def picture(seed: int) -> Image.Image:
    """A smooth random picture of the size of a crop."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((64, 128), Image.Resampling.BICUBIC)


def stored(image: Image.Image, quality: int) -> Image.Image:
    image.save(file := io.BytesIO(), "JPEG", quality=quality)
    return Image.open(file)


def test_a_copy_is_found_and_another_picture_is_not():
    first, other = picture(0), picture(1)
    for copy in (stored(first, 40), first.resize((32, 64)), first.resize((128, 256)), first.convert("RGBA")):
        assert same_picture(first, copy)
    assert not same_picture(first, other)
    assert not same_picture(first, first.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def test_pairs_keep_their_order_and_images_are_opened_once():
    images = {"a": picture(0), "b": stored(picture(0), 60), "c": picture(1), "d": picture(0).resize((30, 60))}
    opened = []

    def open_image(name: str) -> Image.Image:
        opened.append(name)
        return images[name]

    pairs = [("b", "d"), ("a", "c"), ("a", "b")]
    assert near_duplicates(pairs, open_image) == [("b", "d"), ("a", "b")]
    assert sorted(opened) == ["a", "b", "c", "d"]
