"""A Market-1501 tree of noise, with an image for each person: enough for texts, which nobody compares."""

from pathlib import Path

import numpy as np
from PIL import Image


def write_noise_people(root: Path, train: int, *, darker: bool = False) -> Path:
    """Writes `train` images to train on, a query and a gallery image; returns the root.

    darker: each image is darker than the one before, so that a tiny model writes another text for it.
    """
    rng = np.random.default_rng(0)
    for folder, count in (("bounding_box_train", train), ("query", 1), ("bounding_box_test", 1)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (40, 16, 3), dtype=np.uint8) // (number + 1 if darker else 1)
            name = f"{number + 1:04d}_c{1 + (folder == 'query')}s1_000001_01.jpg"
            Image.fromarray(pixels).save(root / folder / name)
    return root
