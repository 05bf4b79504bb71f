"""The gallery at scale: additions, searches, the index, deletions, memory and disk; two writers of one bucket.

python benchmarks/gallery.py [--rows 100000] [--numbers 512] [--repeats 20] [--append RESULTS.md]
python benchmarks/gallery.py --bucket [--rows 20000] [--batch 1000]

Rows have random features around 1,000 centers, so that neighbours are similar. The model is pedestrians-small as ONNX,
with its 768 numbers cut or repeated to `--numbers`. The floor of a search is the model's forward pass on the photo and
the product of all features with one query; both sides take turns.

With `--bucket`, two processes add rows to one gallery in a bucket of moto's S3 server on this machine, and a third one
reads them: all rows that were acknowledged have to be there, and no others.
"""

import argparse
import hashlib
import multiprocessing
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timing import Results, add_arguments, alternate

from modeling_mllmreid.evaluation.calibration import Calibration
from modeling_mllmreid.evaluation.pair_fusion import PairFusion
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

    def pair_fusion(self) -> PairFusion:
        """Raises UserError: the model compares no pairs."""
        return self.encoder.pair_fusion()

    def pair_scores(self, photos: Any, pictures: Any) -> np.ndarray:
        """Compares nothing."""
        return self.encoder.pair_scores(photos, pictures)

    def describe(self, images: Any) -> list[str]:
        """Raises UserError: the model writes no text."""
        return self.encoder.describe(images)

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


@contextmanager
def bucket_server() -> Iterator[dict[str, str]]:
    """Yields the options of the bucket `s3://bucket` on an S3 server of this machine, which ends after the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{endpoint}/bucket", method="PUT"))
                break
            except OSError:
                if server.poll() is not None:
                    raise
                time.sleep(0.1)
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region": "us-east-1"}
        yield {"endpoint": endpoint, "allow_http": "true", **keys}
    finally:
        server.kill()
        server.wait()


def write(place: str, options: dict[str, str], first: int, rows: int, batch: int) -> tuple[list[str], float, float]:
    """Adds rows to a gallery in batches. Returns the ids that were acknowledged, and when it began and ended."""
    gallery, rng = Gallery(place, options=options), np.random.default_rng(first)
    acknowledged: list[str] = []
    begin = time.time()
    for start in range(first, first + rows, batch):
        described_rows = described(start, min(batch, first + rows - start))
        features = rng.normal(size=(len(described_rows), gallery.metadata.numbers)).astype(np.float32)
        if gallery.add_features(features, described_rows) == len(described_rows):
            acknowledged += [row["id"] for row in described_rows]
    return acknowledged, begin, time.time()


def two_writers(results: Results, rows: int, numbers: int, batch: int) -> None:
    """Measures two writers of one bucket."""
    name, place = f"gallery in a bucket, 2 writers, {rows:,} x {numbers} in batches of {batch:,}", "s3://bucket/gallery"
    if find_spec("moto") is None:
        results.skip(name, "the S3 server needs moto[server]")
        return
    share = rows // 2
    with bucket_server() as options:
        Gallery.create(place, WidthEncoder(numbers), options=options)
        with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
            writers = [pool.submit(write, place, options, n * share, share, batch) for n in range(2)]
            written, begins, ends = zip(*[writer.result() for writer in writers], strict=True)
        acknowledged = sorted(name for ids in written for name in ids)
        found = sorted(hit.id for hit in Gallery(place, options=options).find())
    both = min(ends) - max(begins)
    equal = found == acknowledged and len(found) == 2 * share
    results.add(f"{name}: rows acknowledged, rows found", f"{len(acknowledged):,}, {len(found):,}", "equal", equal)
    results.add(f"{name}: rows added a second", f"{len(found) / (max(ends) - min(begins)):,.0f}")
    results.add(f"{name}: s in which both wrote", f"{both:.1f}")


def main() -> None:
    """Fills a gallery, and measures each operation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, help="rows of the gallery (100000, with --bucket 20000)")
    parser.add_argument("--numbers", type=int, default=512)
    parser.add_argument("--bucket", action="store_true", help="measure two writers of one bucket, and nothing else")
    parser.add_argument("--batch", type=int, default=1000, help="rows of one commit in the bucket")
    add_arguments(parser, repeats=20)
    args = parser.parse_args()
    results, rng = Results(args), np.random.default_rng(0)
    if args.bucket:
        two_writers(results, args.rows or 20_000, args.numbers, args.batch)
        results.append()
        return
    args.rows = args.rows or 100_000
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
