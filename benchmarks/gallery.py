"""The gallery at scale: additions, searches, the index, deletions, memory and disk.

python benchmarks/gallery.py [--rows 100000] [--numbers 512] [--repeats 20] [--append RESULTS.md]

Rows have random features around 1,000 centers, so that neighbours are similar. The model is pedestrians-small as ONNX,
with its 768 numbers cut or repeated to `--numbers`. The floor of a search is the model's forward pass on the photo and
the product of all features with one query; both sides take turns.
"""

import argparse
import hashlib
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timing import Results, add_arguments, alternate

from modeling_mllmreid.evaluation.calibration import Calibration
from modeling_mllmreid.gallery.encoder import named_encoder
from modeling_mllmreid.gallery.filters import Where
from modeling_mllmreid.gallery.gallery import Gallery
from modeling_mllmreid.gallery.indexing import build_index
from modeling_mllmreid.gallery.model import EncoderSettings

BATCH = 10_000


class WidthEncoder:
    """pedestrians-small with another number of numbers; only its cost matters here."""

    def __init__(self, numbers: int):
        self.encoder, self.numbers = named_encoder("pedestrians-small"), numbers

    def settings(self) -> EncoderSettings:
        """Returns the settings of the model, with the width."""
        return self.encoder.settings().model_copy(update={"numbers": self.numbers})

    def encode(self, images: Any) -> np.ndarray:
        """Embeds images. Returns (N, numbers)."""
        features = self.encoder.encode(images)
        repeats = -(-self.numbers // features.shape[1])
        return np.ascontiguousarray(np.tile(features, repeats)[:, : self.numbers])

    def encode_text(self, texts: Any) -> np.ndarray:
        """Embeds nothing."""
        return self.encoder.encode_text(texts)

    def calibration(self) -> Calibration | None:
        """Returns the calibration of the model."""
        return self.encoder.calibration()

    def relevance(self, image: Any, feature: np.ndarray) -> np.ndarray:
        """Returns the relevance that the model computes; it is not measured."""
        return self.encoder.relevance(image, feature)

    def threshold(self) -> float | None:
        """Returns the threshold of the model."""
        return self.encoder.threshold()


def described(start: int, count: int) -> list[dict[str, Any]]:
    """Returns rows with a camera, a file name and a time of their own."""
    return [
        {
            "id": hashlib.sha256(str(number).encode()).hexdigest(),
            "camera_id": number % 50,
            "file_name": f"/crops/camera_{number % 50}/{number:08d}.jpg",
            "time": 1_700_000_000_000_000 + 1_000_000 * number,
        }
        for number in range(start, start + count)
    ]


def resident() -> float:
    """Returns the largest resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Fills a gallery, and measures each operation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--numbers", type=int, default=512)
    add_arguments(parser, repeats=20)
    args = parser.parse_args()
    results, rng = Results(args), np.random.default_rng(0)
    name = f"gallery, {args.rows:,} x {args.numbers}"
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.png")
        Image.fromarray(rng.integers(0, 256, (128, 64, 3), dtype=np.uint8)).save(photo)
        encoder = WidthEncoder(args.numbers)
        gallery = Gallery.create(Path(folder, "gallery"), encoder)
        centers = rng.normal(size=(1000, args.numbers)).astype(np.float32)
        start = time.perf_counter()
        for first in range(0, args.rows, BATCH):
            count = min(BATCH, args.rows - first)
            features = centers[rng.integers(1000, size=count)] + 0.5 * rng.normal(size=(count, args.numbers))
            features /= np.linalg.norm(features, axis=1, keepdims=True)
            gallery.add_features(features.astype(np.float32), described(first, count))
        results.add(f"{name}: rows added a second", f"{args.rows / (time.perf_counter() - start):,.0f}")
        before = resident()
        start = time.perf_counter()
        stored = gallery.rows().features
        results.add(f"{name}: seconds until the first search", f"{time.perf_counter() - start:.2f}")
        results.add(f"{name}: MiB of memory for searches", f"{resident() - before:,.0f}")
        results.add(f"{name}: MiB on disk", f"{gallery.info()['bytes'] / 2**20:,.0f}")
        query = np.ascontiguousarray(encoder.encode([photo])[0])

        def floor() -> np.ndarray:
            encoder.encode([photo])
            return stored @ query

        functions = {
            "floor": floor,
            "search": lambda: gallery.search(photo, k=10),
            "camera": lambda: gallery.search(photo, k=10, where=Where(cameras=[3])),
        }
        seconds = alternate(functions, args.repeats, "cpu")
        results.ratio(f"{name}: search by photo / (forward + one product)", seconds["search"], seconds["floor"], 1.3)
        results.ratio(f"{name}: the same, of one camera in 50", seconds["camera"], seconds["floor"])
        milliseconds = 1000 * np.median(seconds["search"])
        results.add(f"{name}: ms of processor time of a search", f"{milliseconds:.1f}")
        start = time.perf_counter()
        index = build_index(gallery)
        taken = time.perf_counter() - start
        results.add(f"{name}: s to build the index and to measure it", f"{taken:.0f}")
        results.add(f"{name}: recall of 10, {index.probes} of {index.partitions} parts", f"{index.recall:.3f}")
        results.add(f"{name}: MiB on disk, with the index", f"{gallery.info()['bytes'] / 2**20:,.0f}")
        fresh = Gallery(gallery.store.place, encoder)
        fresh.search(query, approximate=True)
        pair = {"exact": lambda: gallery.search(query, k=10), "index": lambda: fresh.search(query, approximate=True)}
        times = alternate(pair, args.repeats, "wall")
        for kind, seconds in times.items():
            results.add(f"{name}: ms of a search by feature, {kind}", f"{1000 * np.median(seconds):.1f}")
        for count in (1, args.rows // 100):
            chosen = Where(ids=list(gallery.rows().ids[:count]))
            start = time.perf_counter()
            erased = gallery.delete(chosen)
            taken = f"{time.perf_counter() - start:.2f} s, {erased.traces.count} traces"
            results.add(f"{name}: erasing {count:,} rows, with the search for traces", taken)
    results.append()


if __name__ == "__main__":
    main()
