"""How fast crops become training inputs: decode, augment, resize and collate, one process.

python benchmarks/data.py [--images 1500] [--steps 12]

Renders pedestrians as 64 x 128 JPEG files, makes 252 x 126 tensors of them as training does, and prints crops a second
and the time as a multiple of decoding alone. Then a tiny model trains on them: the share of a step that waits for data,
without and with one loading process.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch

from modeling_mllmreid.data import load_reid_dataset, open_image
from modeling_mllmreid.data.sampler import PKSampler
from modeling_mllmreid.data.synthetic import write_pedestrians
from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.tiny.llava import build_processor, build_tiny_llava
from modeling_mllmreid.training import BatchArguments
from modeling_mllmreid.training.batches import TrainCollator, TrainDataset

HEIGHT, WIDTH, PATCH = 252, 126, 14
P, K = 8, 4


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        people = Path(folder) / "people"
        write_pedestrians(people, train_identities=max(args.images // 20, P), test_identities=1)
        train = load_reid_dataset("market1501", data_dir=people, captions_file=people / "reid_raw.json")["train"]
        captions = [caption for captions in train["caption"][:200] for caption in captions]
        processor = build_processor(captions, height=HEIGHT, width=WIDTH, patch_size=PATCH)
        samples = TrainDataset(train, processor, BatchArguments(target="caption"), seed=0, language=True)
        collator = TrainCollator(processor, BatchArguments(target="caption"), language=True, reid_text=False)
        speed(samples, collator)
        waiting(samples, collator, processor, args.steps)


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
