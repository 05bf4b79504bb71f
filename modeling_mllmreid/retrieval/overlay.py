"""Draws the relevance of a crop's places on the crop: orange where the crops are alike, blue where they differ."""

import os

import numpy as np
from PIL import Image, ImageColor, ImageOps

from ..data.images import open_image
from ..model.images import to_rgb
from ..utils.errors import UserError

# Colours that people with any colour vision can distinguish.
ALIKE, DIFFERENT = "#e66100", "#0060d6"
# Share of the colour at the largest relevance. The rest is the crop.
STRONGEST = 0.7


def draw_relevance(
    image: Image.Image | str | os.PathLike[str], relevance: np.ndarray, *, limit: float | None = None
) -> Image.Image:
    """Draws relevance on a crop: orange where it is positive, blue where it is negative.

    The crop is drawn in grey, so that clothes are not taken for relevance. The larger the relevance, the stronger is
    its colour.

    Args:
        image (`PIL.Image.Image`, `str` or `os.PathLike`): the crop.
        relevance (`np.ndarray`): (h, w), the result of `image_relevance`.
        limit (`float`, *optional*): relevance of the strongest colour. By default the largest one without its sign.
            Give one limit to compare two drawings.

    Returns:
        `PIL.Image.Image`: RGB, of the crop's size.

    Raises:
        UserError: the relevance is no table of finite numbers, the limit is not positive, or the image cannot be
            opened.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> from modeling_mllmreid import draw_relevance
        >>> drawn = draw_relevance(Image.new("RGB", (64, 128), "gray"), np.array([[0.1], [-0.2]]))
        >>> drawn.size, drawn.getpixel((32, 127))
        ((64, 128), (38, 106, 188))
    """
    relevance = np.asarray(relevance, dtype=np.float32)
    if relevance.ndim != 2 or not relevance.size or not np.isfinite(relevance).all():
        raise UserError(f"relevance of shape {list(relevance.shape)}: give finite numbers (h, w)")
    if limit is not None and not 0 < limit < np.inf:
        raise UserError(f"limit {limit}: give a number above 0")
    crop = to_rgb(ImageOps.exif_transpose(image)) if isinstance(image, Image.Image) else open_image(image)
    largest = float(np.abs(relevance).max()) if limit is None else limit
    share = np.clip(relevance / (largest or 1.0), -1, 1)
    smooth = np.asarray(Image.fromarray(share).resize(crop.size, Image.Resampling.BILINEAR))[..., None]
    grey = np.asarray(ImageOps.grayscale(crop).convert("RGB"), dtype=np.float32)
    colour = np.where(smooth > 0, ImageColor.getrgb(ALIKE), ImageColor.getrgb(DIFFERENT))
    opacity = STRONGEST * np.abs(smooth)
    return Image.fromarray(np.round((1 - opacity) * grey + opacity * colour).astype(np.uint8))
