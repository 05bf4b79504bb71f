"""Small image filters on arrays (H, W) or (H, W, C)."""

import numpy as np


def box_mean(image: np.ndarray, radius: int) -> np.ndarray:
    """The mean over a square of 2 radius + 1 pixels, with repeated edges."""
    for axis in (0, 1):
        count, span = image.shape[axis], 2 * radius + 1
        widths = [(radius + 1, radius) if a == axis else (0, 0) for a in range(image.ndim)]
        sums = np.cumsum(np.pad(image, widths, mode="edge"), axis, dtype=np.float32)
        high, low = sums.take(range(span, span + count), axis), sums.take(range(count), axis)
        image = (high - low) / span
    return image


def soften(image: np.ndarray) -> np.ndarray:
    """The kernel 1 2 1 in both directions; the outermost pixels stay."""
    rows = image.copy()
    rows[1:-1] = 0.5 * image[1:-1] + 0.25 * (image[:-2] + image[2:])
    both = rows.copy()
    both[:, 1:-1] = 0.5 * rows[:, 1:-1] + 0.25 * (rows[:, :-2] + rows[:, 2:])
    return both


def dots(x: np.ndarray, y: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An image (H, W) that is 1 at the pixels of points and 0 elsewhere."""
    height, width = size
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    image = np.zeros(size, np.float32)
    image[y[inside].astype(int), x[inside].astype(int)] = 1
    return image
