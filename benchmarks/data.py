"""How fast lists of images are read, and crops become training inputs: decode, augment, resize, collate; one process.

python benchmarks/data.py [--images 1500] [--steps 12] [--names 126441]

Reads MSMT17's lists of so many names, of empty files, and prints the processor time, also as a multiple of what cannot
be saved: splitting the lists' lines and scanning each folder once.

Renders pedestrians as 64 x 128 JPEG files, makes 252 x 126 tensors of them as training does, and prints crops a second
and the time as a multiple of decoding alone. Then a tiny model trains on them: the share of a step that waits for data,
without and with one loading process.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from timing import alternate

from modeling_mllmreid.data.images import open_image
from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.data.sampler import PKSampler
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.training.arguments import BatchArguments
from modeling_mllmreid.training.batches import TrainCollator, TrainDataset

HEIGHT, WIDTH, PATCH = 252, 126, 14
P, K = 8, 4


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--names", type=int, default=126_441, help="MSMT17 V1 has 126,441")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        reading(Path(folder) / "msmt17", args.names)
        people = Path(folder) / "people"
        write_pedestrians(people, train_identities=max(args.images // 20, P), test_identities=1)
        train = load_reid_dataset("market1501", data_dir=people, captions_file=people / "reid_raw.json")["train"]
        captions = [caption for captions in train["caption"][:200] for caption in captions]
        processor = build_processor(captions, height=HEIGHT, width=WIDTH, patch_size=PATCH)
        samples = TrainDataset(train, processor, BatchArguments(target="caption"), seed=0, language=True)
        collator = TrainCollator(processor, BatchArguments(target="caption"), language=True, reid_text=False)
        speed(samples, collator)
        waiting(samples, collator, processor, args.steps)


def reading(root: Path, names: int) -> None:
    """Processor time of reading lists of images in folders of thirty, which is what MSMT17 has on average."""
    shares = {"train": ("train", 0.24), "val": ("train", 0.02), "query": ("test", 0.09), "gallery": ("test", 0.65)}
    for part, (side, share) in shares.items():
        paths = [f"{n // 30:04d}/{n // 30:04d}_{n:06d}_01_{part}_0001_0.jpg" for n in range(max(int(names * share), 1))]
        for person in range(len(paths) // 30 + 1):
            (root / side / f"{person:04d}").mkdir(parents=True, exist_ok=True)
        for path in paths:
            (root / side / path).touch()
        (root / f"list_{part}.txt").write_text("".join(f"{path} {int(path[:4])}\n" for path in paths))

    def bare() -> None:
        for folder, _, _ in os.walk(root):
            with os.scandir(folder) as entries:
                {entry.name for entry in entries if entry.is_file()}
        for path in root.glob("list_*.txt"):
            [line.rsplit(" ", 1) for line in path.read_text().splitlines()]

    ways = {"reader": lambda: load_reid_dataset("msmt17", data_dir=root), "bare": bare}
    seconds = alternate(ways, 5, "cpu")
    ratio = np.median(np.array(seconds["reader"]) / np.array(seconds["bare"]))
    took = np.median(seconds["reader"])
    print(f"MSMT17's lists, {names:,} names: {took:.2f} CPU s, {ratio:.1f} x scanning and splitting")


def speed(samples: TrainDataset, collator: TrainCollator) -> None:
    """Crops a second of one process."""
    start = time.perf_counter()
    for source in samples.images:
        open_image(source)
    decoding = time.perf_counter() - start
    start = time.perf_counter()
    for first in range(0, len(samples), P * K):
        collator([samples[i, 0, i] for i in range(first, min(first + P * K, len(samples)))])
    whole = time.perf_counter() - start
    print(
        f"{len(samples):,} crops, one process: {len(samples) / whole:.0f} a second, {whole / decoding:.1f} x decoding"
    )


def waiting(samples: TrainDataset, collator: TrainCollator, processor, steps: int) -> None:
    """The share of a training step that waits for its batch, with a model of 1.6 million parameters on one thread."""
    llava = build_tiny_llava(processor, hidden_size=128, tower_layers=4, lm_layers=4, seed=0)
    fields = {"height": HEIGHT, "width": WIDTH, "image_prefix_ids": processor.image_prefix_ids}
    model = MllmReIDModel.from_mllm(llava, num_identities=samples.num_identities, **fields).train()
    for workers in (0, 1):
        sampler = PKSampler(samples.person_ids, samples.camera_ids, identities_per_batch=P, images_per_identity=K)
        loader = torch.utils.data.DataLoader(
            samples, batch_size=P * K, sampler=sampler, collate_fn=collator, num_workers=workers
        )
        batches, waited, worked = iter(loader), 0.0, 0.0
        next(batches)  # the workers start
        for _ in range(min(steps, len(loader) - 1)):
            start = time.perf_counter()
            batch = next(batches)
            middle = time.perf_counter()
            model(**batch).loss.backward()
            waited, worked = waited + middle - start, worked + time.perf_counter() - middle
        print(
            f"{workers} loading processes: {waited / (waited + worked):.1%} of a step of {worked / steps:.2f} s waits"
        )


if __name__ == "__main__":
    main()
