"""Augmentation of person crops, by a given generator: flip, pad and crop, random erasing (Zhong et al. 2020)."""

from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps

from ..utils.errors import UserError

Pixels = TypeVar("Pixels", np.ndarray, torch.Tensor)

# The field's 10 pixels are of 128; a crop of 28 pixels would lose a third of the person by them.
MAX_PAD_SHARE = 1 / 8
ERASE_ATTEMPTS = 100


def rng_for(seed: int, epoch: int, position: int, index: int) -> np.random.Generator:
    """The generator of one sample: the same in every worker and process, another at each place of each epoch."""
    return np.random.default_rng([seed, epoch, position, index])


class PersonAugmentation:
    """What training does to a crop: `transform_image` before the image processor, `erase` after its normalisation.

    height, width: the model's input in pixels. flip, erase: probabilities. pad: black pixels added at that size on each
    side before a crop of the input size is cut at random; at most an eighth of the shorter side is added. erase_area:
    range of the erased share of the area; erase_ratio: range of height / width, drawn evenly in its logarithm.
    Raises UserError naming the setting that is out of range.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        flip: float = 0.5,
        pad: int = 10,
        erase: float = 0.5,
        erase_area: tuple[float, float] = (0.02, 0.33),
        erase_ratio: tuple[float, float] = (0.3, 3.3),
    ) -> None:
        for name, probability in (("flip", flip), ("erase", erase)):
            if not 0 <= probability <= 1:
                raise UserError(f"{name} is {probability}: give a probability, 0 to 1")
        if pad < 0:
            raise UserError(f"pad is {pad}: give 0 or more pixels")
        if not 0 < erase_area[0] <= erase_area[1] < 1:
            raise UserError(
                f"erase_area is {erase_area}: give two shares of the area between 0 and 1, the smaller first"
            )
        if not 0 < erase_ratio[0] <= erase_ratio[1]:
            raise UserError(f"erase_ratio is {erase_ratio}: give two positive ratios, the smaller first")
        self.height, self.width = height, width
        self.flip_probability, self.erase_probability = flip, erase
        self.pad = min(pad, int(min(height, width) * MAX_PAD_SHARE))
        self.erase_area, self.erase_ratio = erase_area, erase_ratio

    def transform_image(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """The crop as RGB of exactly (width, height): resized (bicubic), flipped or not, shifted by up to `pad`."""
        image = image.convert("RGB").resize((self.width, self.height), Image.Resampling.BICUBIC)
        if rng.random() < self.flip_probability:
            image = ImageOps.mirror(image)
        left, top = (int(shift) for shift in rng.integers(-self.pad, self.pad + 1, size=2))
        # Cropping over the border fills with black: the same as padding first.
        return image.crop((left, top, left + self.width, top + self.height))

    def erase(self, pixel_values: Pixels, rng: np.random.Generator) -> Pixels:
        """A copy of normalised pixels (C, H, W) with one rectangle set to 0, the mean colour, or with none."""
        erased = pixel_values.clone() if isinstance(pixel_values, torch.Tensor) else pixel_values.copy()
        if rng.random() >= self.erase_probability:
            return erased
        height, width = pixel_values.shape[-2:]
        for _ in range(ERASE_ATTEMPTS):
            area = rng.uniform(*self.erase_area) * height * width
            ratio = np.exp(rng.uniform(*np.log(self.erase_ratio)))
            tall, wide = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < tall < height and 0 < wide < width:
                top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
                erased[..., top : top + tall, left : left + wide] = 0
                break
        return erased
