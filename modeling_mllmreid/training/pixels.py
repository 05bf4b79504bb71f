"""The pixels of resized crops: those of a processor, by a table of its values, in a fraction of its time."""

from typing import Any

import numpy as np
from PIL import Image

LEVELS = 256


class CropPixels:
    """Converts crops that have the input size to the `pixel_values` of a processor, to the last bit.

    Image processors rescale and normalise each pixel alone, so their output is a table of 256 values for each channel.
    A lookup takes a sixth of the time of the processor's passes in double precision and its checks. A processor that
    does anything else is called itself.

    Args:
        processor (`MllmReIDProcessor` or `MllmReIDVisionProcessor`): makes the pixels.

    Example:
        >>> from PIL import Image
        >>> from modeling_mllmreid.research.tiny_llava import build_processor
        >>> from modeling_mllmreid.training.pixels import CropPixels
        >>> processor = build_processor([], height=64, width=32, patch_size=16)
        >>> crop = Image.new("RGB", (32, 64), "red")
        >>> (CropPixels(processor)(crop) == processor(images=[crop])["pixel_values"][0].numpy()).all()
        np.True_
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self.table: np.ndarray | None = None
        height, width = processor.height, processor.width
        # Gray images that hold every level; small crops need several.
        count = -(-LEVELS // (height * width))
        levels = (np.arange(count * height * width) % LEVELS).astype(np.uint8).reshape(count, height, width)
        gray = [Image.fromarray(np.stack([image] * 3, axis=2)) for image in levels]
        pixels = processor(images=gray)["pixel_values"].numpy()
        table = np.ascontiguousarray(pixels.transpose(1, 0, 2, 3).reshape(3, -1)[:, :LEVELS])
        noise = Image.fromarray(np.random.default_rng(0).integers(LEVELS, size=(height, width, 3), dtype=np.uint8))
        if np.array_equal(_looked_up(table, noise), processor(images=[noise])["pixel_values"][0].numpy()):
            self.table = table

    def __call__(self, crop: Image.Image) -> np.ndarray:
        """Returns the pixels of a crop.

        Args:
            crop (`Image.Image`): RGB, of the processor's height and width.

        Returns:
            `np.ndarray` of shape (3, height, width): normalised pixels, the caller's own.
        """
        if self.table is None:
            pixels: np.ndarray = self.processor(images=[crop])["pixel_values"][0].numpy()
            return pixels
        return _looked_up(self.table, crop)


def _looked_up(table: np.ndarray, crop: Image.Image) -> np.ndarray:
    """Returns (3, H, W), the values of a table (3, 256) at the levels of a crop."""
    # Pillow stores a pixel in four bytes. Copying all of them takes a third of the time of copying three.
    levels = np.frombuffer(crop.tobytes("raw", "RGBX"), np.uint8).reshape(crop.height, crop.width, 4)
    pixels = np.empty((3, *levels.shape[:2]), table.dtype)
    for channel, values in enumerate(table):
        # No level is out of range. The mode writes to `out` without a buffer.
        values.take(levels[..., channel], out=pixels[channel], mode="wrap")
    return pixels
