"""Measures the rendering of pedestrians: processor time of a crop on one thread, and the time of a whole set.

python benchmarks/rendering.py [--people 40] [--images 2000]

Renders crops of 64 x 128 and 128 x 256 in this process and prints the processor time of each, persons and scenes
included, and relative to the JPEG encoding of the same images. Then it writes a set of 64 x 128 crops with one process
for each core.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path

from PIL import Image

from modeling_mllmreid.synthetic.write import write_pedestrians

IMAGES_OF_A_PERSON = 20


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for height, width in ((128, 64), (256, 128)):
            root = Path(folder) / f"{height}"
            start = time.process_time()
            size = (height, width)
            write_pedestrians(root, train_identities=options.people, test_identities=0, processes=1, size=size)
            rendering = time.process_time() - start
            images = [Image.open(path).convert("RGB") for path in root.rglob("*.jpg")]
            start = time.process_time()
            for image in images:
                image.save(io.BytesIO(), "JPEG", quality=92)
            ratio = rendering / (time.process_time() - start)
            each = 1000 * rendering / len(images)
            print(f"{width} x {height}: {each:.1f} ms of one core a crop, {ratio:.0f} times its encoding")
        start = time.perf_counter()
        people = options.images // IMAGES_OF_A_PERSON
        written = write_pedestrians(Path(folder) / "set", train_identities=people, test_identities=0)
        seconds = time.perf_counter() - start
        print(f"{written.train_images} crops of 64 x 128 in {seconds:.1f} s, one process for each core")


if __name__ == "__main__":
    main()
