"""What both processors share: whole person crops to pixels."""

import os

from transformers.image_utils import load_image


class CropSize:
    """The size in pixels that crops are resized to, by the image processor."""

    @property
    def height(self) -> int:
        """Height in pixels that crops are resized to."""
        return self.image_processor.size["height"]

    @property
    def width(self) -> int:
        """Width in pixels that crops are resized to."""
        return self.image_processor.size["width"]


def as_list(value) -> list:
    """The value itself where it is a list or a tuple, else a list of it."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def crop_pixels(image_processor, images, **kwargs) -> dict:
    """`pixel_values`, (B, 3, H, W). images: a path, a PIL image, or a list of them, of any size."""
    loaded = [load_image(image if hasattr(image, "size") else os.fspath(image)) for image in as_list(images)]
    return dict(image_processor(images=loaded, return_tensors="pt", **kwargs))
