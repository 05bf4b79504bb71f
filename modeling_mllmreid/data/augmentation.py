"""Augmentation of person crops: flip, pad and crop, colour jitter, downscaling, random erasing (Zhong et al. 2020)."""

from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from ..utils.errors import UserError

Pixels = TypeVar("Pixels", np.ndarray, torch.Tensor)

# The usual padding is 10 of 128 pixels. The same 10 pixels would hide a third of a person in a crop of 28 pixels.
MAX_PAD_SHARE = 1 / 8
ERASE_ATTEMPTS = 100
# The smallest size of a downscaled crop: a crop of half the height keeps the patterns that identify a person.
LEAST_SCALE = 1 / 2
COLOR_CHANGES = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


def rng_for(seed: int, epoch: int, position: int, index: int) -> np.random.Generator:
    """Returns the random generator of one sample, which does not depend on the worker or the process.

    Args:
        seed (`int`): the seed of the run.
        epoch (`int`): the epoch, from 0.
        position (`int`): the position of the sample in the epoch, from 0.
        index (`int`): the index of the image in the data set.

    Returns:
        `np.random.Generator`: a new generator.
    """
    return np.random.default_rng([seed, epoch, position, index])


class PersonAugmentation:
    """Augments a person crop: `transform_image` before the image processor, `erase` after its normalisation.

    Source of `erase`: Zhong et al., Random Erasing Data Augmentation, AAAI 2020.

    Args:
        height (`int`): the height of the model's input, in pixels.
        width (`int`): the width of the model's input, in pixels.
        flip (`float`, defaults to 0.5): the probability of a horizontal flip.
        pad (`int`, defaults to 10): the black pixels added to each side of the resized image before a random crop of
            the input size. The padding is at most an eighth of the shorter side.
        erase (`float`, defaults to 0.5): the probability of random erasing.
        color_jitter (`float`, defaults to 0): the largest relative change of brightness, contrast and saturation, each
            drawn uniformly. The hue stays, as the colours of clothes identify a person.
        downscale (`float`, defaults to 0): the probability of shrinking the resized image to between half and full
            size and enlarging it again, as a person far from the camera looks.
        erase_area (`tuple[float, float]`): the range of the erased share of the area.
        erase_ratio (`tuple[float, float]`): the range of height / width, sampled uniformly on a logarithmic scale.

    Raises:
        UserError: a setting is out of range.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        flip: float = 0.5,
        pad: int = 10,
        erase: float = 0.5,
        color_jitter: float = 0.0,
        downscale: float = 0.0,
        erase_area: tuple[float, float] = (0.02, 0.33),
        erase_ratio: tuple[float, float] = (0.3, 3.3),
    ) -> None:
        for name, probability in (("flip", flip), ("erase", erase), ("downscale", downscale)):
            if not 0 <= probability <= 1:
                raise UserError(f"{name} is {probability}: give a probability, 0 to 1")
        if pad < 0:
            raise UserError(f"pad is {pad}: give 0 or more pixels")
        if not 0 <= color_jitter < 1:
            raise UserError(f"color_jitter is {color_jitter}: give a relative change, 0 or more and below 1")
        if not 0 < erase_area[0] <= erase_area[1] < 1:
            raise UserError(
                f"erase_area is {erase_area}: give two shares of the area between 0 and 1, the smaller first"
            )
        if not 0 < erase_ratio[0] <= erase_ratio[1]:
            raise UserError(f"erase_ratio is {erase_ratio}: give two positive ratios, the smaller first")
        self.height, self.width = height, width
        self.flip_probability, self.erase_probability = flip, erase
        self.color_jitter, self.downscale_probability = color_jitter, downscale
        self.pad = min(pad, int(min(height, width) * MAX_PAD_SHARE))
        self.erase_area, self.erase_ratio = erase_area, erase_ratio
        self.log_erase_ratio = tuple(np.log(erase_ratio).tolist())

    def transform_image(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Resizes the image (bicubic), flips it at random, changes its colours and sharpness, and shifts it.

        Args:
            image (`Image.Image`): a person crop of any size.
            rng (`np.random.Generator`): the generator of the sample.

        Returns:
            `Image.Image`: RGB, (width, height) pixels.
        """
        image = image if image.mode == "RGB" else image.convert("RGB")
        image = image.resize((self.width, self.height), Image.Resampling.BICUBIC)
        if rng.random() < self.flip_probability:
            image = ImageOps.mirror(image)
        left, top = (int(shift) for shift in rng.integers(-self.pad, self.pad + 1, size=2))
        if self.color_jitter:
            for change in COLOR_CHANGES:
                image = change(image).enhance(1 + rng.uniform(-self.color_jitter, self.color_jitter))
        if self.downscale_probability and rng.random() < self.downscale_probability:
            scale = rng.uniform(LEAST_SCALE, 1)
            small = (max(1, round(self.width * scale)), max(1, round(self.height * scale)))
            image = image.resize(small, Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BICUBIC)
        # PIL fills a crop beyond the border with black, which equals padding before the crop.
        return image.crop((left, top, left + self.width, top + self.height))

    def erase(self, pixel_values: Pixels, rng: np.random.Generator, *, in_place: bool = False) -> Pixels:
        """Sets one random rectangle of normalised pixels to 0, the mean colour, with probability `erase`.

        Args:
            pixel_values (`np.ndarray` or `torch.Tensor` of shape (C, H, W)): normalised pixels.
            rng (`np.random.Generator`): the generator of the sample.
            in_place (`bool`, defaults to False): whether to change `pixel_values` itself.

        Returns:
            `np.ndarray` or `torch.Tensor` of shape (C, H, W): a copy, or `pixel_values`.
        """
        erased = pixel_values
        if not in_place:
            erased = pixel_values.clone() if isinstance(pixel_values, torch.Tensor) else pixel_values.copy()
        if rng.random() >= self.erase_probability:
            return erased
        height, width = pixel_values.shape[-2:]
        for _ in range(ERASE_ATTEMPTS):
            area = rng.uniform(*self.erase_area) * height * width
            ratio = np.exp(rng.uniform(*self.log_erase_ratio))
            box_height, box_width = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if 0 < box_height < height and 0 < box_width < width:
                top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
                erased[..., top : top + box_height, left : left + box_width] = 0
                break
        return erased
