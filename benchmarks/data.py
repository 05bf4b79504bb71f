"""Measures the speed of reading image lists, and of making training inputs in one process.

python benchmarks/data.py [--images 1500] [--steps 12] [--names 126441]

1. Reads MSMT17 lists of empty files, and prints the CPU time, also as a multiple of the minimum: splitting the lines
   and scanning each folder once.
2. Renders pedestrians as 64 x 128 JPEG files, and decodes, augments, resizes and collates them to 252 x 126 tensors.
   Prints crops a second, and the time as a multiple of decoding alone.
3. Trains a tiny model on them, and prints the share of a step that waits for data, with 0 and 1 loading processes.
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
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.batches import TrainCollator, TrainDataset

HEIGHT, WIDTH, PATCH = 252, 126, 14
P, K = 8, 4


def main() -> None:
    """Prints the three results."""
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
    """Prints the CPU time of reading image lists with 30 images in a folder, as in MSMT17 on average."""
    shares = {"train": ("train", 0.24), "val": ("train", 0.02), "query": ("test", 0.09), "gallery": ("test", 0.65)}
    for split, (side, share) in shares.items():
        paths = [
            f"{n // 30:04d}/{n // 30:04d}_{n:06d}_01_{split}_0001_0.jpg" for n in range(max(int(names * share), 1))
        ]
        for person in range(len(paths) // 30 + 1):
            (root / side / f"{person:04d}").mkdir(parents=True, exist_ok=True)
        for path in paths:
            (root / side / path).touch()
        (root / f"list_{split}.txt").write_text("".join(f"{path} {int(path[:4])}\n" for path in paths))

    def minimum() -> None:
        for folder, _, _ in os.walk(root):
            with os.scandir(folder) as entries:
                {entry.name for entry in entries if entry.is_file()}
        for path in root.glob("list_*.txt"):
            [line.rsplit(" ", 1) for line in path.read_text().splitlines()]

    functions = {"reader": lambda: load_reid_dataset("msmt17", data_dir=root), "minimum": minimum}
    seconds = alternate(functions, 5, "cpu")
    ratio = np.median(np.array(seconds["reader"]) / np.array(seconds["minimum"]))
    median = np.median(seconds["reader"])
    print(f"MSMT17's lists, {names:,} names: {median:.2f} CPU s, {ratio:.1f} x scanning and splitting")


def speed(samples: TrainDataset, collator: TrainCollator) -> None:
    """Prints the crops a second of one process."""
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
    """Prints the share of a step that waits for its batch, with a model of 1.6 million parameters on one thread."""
    llava = build_tiny_llava(processor, hidden_size=128, tower_layers=4, lm_layers=4, seed=0)
    fields = {"height": HEIGHT, "width": WIDTH, "image_prefix_ids": processor.image_prefix_ids}
    model = MllmReIDModel.from_mllm(llava, num_identities=samples.num_identities, **fields).train()
    for workers in (0, 1):
        sampler = PKSampler(samples.person_ids, samples.camera_ids, identities_per_batch=P, images_per_identity=K)
        loader = torch.utils.data.DataLoader(
            samples, batch_size=P * K, sampler=sampler, collate_fn=collator, num_workers=workers
        )
        batches, waited, worked = iter(loader), 0.0, 0.0
        next(batches)  # starts the workers
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
