"""Near-duplicates: crops that are almost the same picture, such as a file that was stored or resized again.

The digest of a file differs after any change, and near features are not enough: a model embeds two pictures of one
person in one place almost alike. So the pixels of two crops with near features are compared.
"""

from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

# Both pictures are compared at this size, width and height.
SIZE = (12, 24)
# Mean difference of a colour value, of 255. On 2,000 rendered crops of one size, copies stored as JPEG of quality 20 to
# 90 or resized by 1/2 or 2 differ by at most 3.6, copies that lose 2 pixels at each side by 4.7 in the median, and two
# different pictures by at least 10.2.
LARGEST = 8.0


def same_picture(first: Image.Image, second: Image.Image) -> bool:
    """Returns whether two images are almost equal at a small size."""
    return _differ(_small(first), _small(second)) <= LARGEST


def near_duplicates(
    pairs: Iterable[tuple[str, str]], open_image: Callable[[str], Image.Image]
) -> list[tuple[str, str]]:
    """Keeps the pairs of crops that are almost the same picture.

    Args:
        pairs (`Iterable[tuple[str, str]]`): Ids of crops with near features, as in `UnknownPeople.close`.
        open_image (`Callable[[str], Image.Image]`): Opens the image of an id; each is opened once.

    Returns:
        `list[tuple[str, str]]`: Those pairs, in their order.
    """
    small: dict[str, np.ndarray] = {}
    kept = []
    for pair in pairs:
        for name in pair:
            if name not in small:
                small[name] = _small(open_image(name))
        if _differ(small[pair[0]], small[pair[1]]) <= LARGEST:
            kept.append(pair)
    return kept


def _small(image: Image.Image) -> np.ndarray:
    """Returns the pixels (24, 12, 3) uint8 of a small copy."""
    return np.asarray(image.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR))


def _differ(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the mean difference of a colour value."""
    return float(np.abs(first.astype(np.float64) - second).mean())
