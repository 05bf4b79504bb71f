"""Measures the speed of rendering pedestrians: images a second, and the time relative to their JPEG encoding.

python benchmarks/rendering.py [images]
"""

import io
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from modeling_mllmreid.synthetic.write import write_pedestrians


def main(images: int = 2000) -> None:
    """Renders about `images` images into a temporary folder, and encodes them again as the floor."""
    people = max(2, images // 20)
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        write_pedestrians(Path(folder) / "people", train_identities=people - 1, test_identities=1)
        rendering = time.perf_counter() - start
        opened = []
        for path in Path(folder).rglob("*.jpg"):
            with Image.open(path) as image:
                opened.append(image.convert("RGB"))
    start = time.perf_counter()
    for image in opened:
        image.save(io.BytesIO(), "JPEG", quality=90)
    floor = time.perf_counter() - start
    print(f"{len(opened)} images in {rendering:.1f} s, {len(opened) / rendering:.0f} a second")
    print(f"{rendering / floor:.1f} times the encoding alone")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
