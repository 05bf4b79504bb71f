"""A process that adds rows to a gallery in a bucket: several of them run at the same time."""

import hashlib
import json
import sys

import numpy as np

from modeling_mllmreid.gallery.gallery import Gallery

NUMBERS, BATCHES, ROWS = 32, 3, 20


def feature(number: int) -> np.ndarray:
    """The feature of a row."""
    return np.random.default_rng(number).normal(size=NUMBERS).astype(np.float32)


def row(number: int) -> dict[str, object]:
    """The other columns of a row."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    return {"id": digest, "camera_id": number % 7, "file_name": f"/crops/number_{number:06d}.jpg"}


if __name__ == "__main__":
    gallery, writer, added = Gallery(sys.argv[1], options=json.loads(sys.argv[2])), int(sys.argv[3]), 0
    for batch in range(BATCHES):
        first = 1000 * writer + ROWS * batch
        numbers = range(first, first + ROWS)
        added += gallery.add_features(np.stack([feature(n) for n in numbers]), [row(n) for n in numbers])
    print(added)
