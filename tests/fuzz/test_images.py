"""Fuzz: image files. An image that opens has correct pixels; any other file is refused quickly."""

from pathlib import Path
from typing import Any

import numpy as np
from fuzz_harness import Area, make_tests
from hostile import image_bytes, images, picture

from modeling_mllmreid.data.images import open_image
from modeling_mllmreid.model.images import FORMATS, MAX_PIXELS

LOSSLESS = ("PNG", "BMP", "TIFF", "PPM", "GIF")


def build(value: Any, root: Path) -> None:
    what, suffix = value
    (root / f"a.{suffix}").write_bytes(image_bytes(what))


def act(value: Any, root: Path) -> None:
    what, suffix = value
    image = open_image(str(root / f"a.{suffix}"))
    assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_PIXELS
    pixels = np.asarray(image)
    assert what[0] != "none", "no image was opened"
    if what[0] == "bomb":
        assert what[2] ** 2 <= MAX_PIXELS or what[1] == "GIF", "a bomb was opened"
    if what[0] != "whole":
        return
    (form, mode), width, height, variant = what[1]
    assert form in FORMATS, f"{form} was opened"
    assert (image.width, image.height) == (width, height)
    ramp = np.asarray(picture("L", width, height, 0), dtype=int)[..., None]
    if mode == "F":
        assert variant in (0, 1) or pixels.max() < 255, "floats of no known range were opened"
    elif form in LOSSLESS and mode not in ("1", "P", "LAB", "CMYK", "YCbCr") and (form, mode) != ("GIF", "RGBA"):
        assert np.abs(pixels.astype(int) - ramp).max() <= 1, f"{form} {mode}: other pixels"


test_few_examples, test_many_examples = make_tests(Area("images", 0.13, images, build, act))
