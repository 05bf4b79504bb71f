"""Measures the way from an image file to the normalised pixels of a training sample.

python benchmarks/input.py [--identities 8] [--repeats 20]

sample  `TrainDataset` on an image list: decode, flip, shift, erase, normalise, with the default augmentation.
batch   the same with `TrainCollator`, 32 samples at a time.
floor   the plain way without augmentation: Pillow decodes and resizes, torch normalises in place.

The files are rendered people, JPEGs of 128 x 64 pixels as in Market-1501 and of 384 x 192. All take turns in one run on
one core. The time is that of the processor. From 128 x 64 to 128 x 64 the floor takes 0.12 ms. Of what a sample takes
beyond it, the generator of its random numbers, flip, shift and erasing, which the floor lacks, take 0.024 ms.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import timing
import torch
from PIL import Image
from torch import Tensor

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.model import MllmReIDVisionProcessor
from modeling_mllmreid.model.crops import crop_image_processor
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.batches import TrainCollator, TrainDataset

BATCH = 32
# Of the files and of the model's input: height and width.
FILES = ((128, 64), (384, 192))
INPUTS = ((128, 64), (252, 126))
TARGET = 1.2


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=8, help="rendered people, about 20 images each")
    timing.add_arguments(parser, repeats=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = timing.Results(args)
    for size in FILES:
        with tempfile.TemporaryDirectory() as folder:
            people = Path(folder) / "people"
            write_pedestrians(people, train_identities=args.identities, test_identities=1, size=size)
            split = load_reid_dataset("market1501", data_dir=people)["train"]
            for height, width in INPUTS:
                processor = MllmReIDVisionProcessor(crop_image_processor({"height": height, "width": width}))
                samples = TrainDataset(split, processor, BatchArguments(), seed=0, language=False)
                compare(samples, f"{size[0]} x {size[1]} file to {height} x {width}", args, results)
    results.append()


def compare(samples: TrainDataset, setting: str, args: argparse.Namespace, results: timing.Results) -> None:
    """Times samples, batches and the plain way in turns, and adds their ratios."""
    image_processor = samples.processor.image_processor
    moments = (image_processor.image_mean, image_processor.image_std)
    mean, std = (torch.tensor(values)[:, None, None] for values in moments)
    size = (samples.processor.width, samples.processor.height)
    collator = TrainCollator(samples.processor, BatchArguments(), language=False, reid_text=False)
    functions: dict[str, Callable[[], object]] = {
        "sample": partial(each, lambda i: samples[i, 0, i], range(len(samples))),
        "batch": partial(batches, samples, collator),
        "floor": partial(each, lambda path: plain(path, size, mean, std), samples.images),
    }
    seconds = timing.alternate(functions, args.repeats, "cpu")
    floor = np.median(seconds["floor"]) / len(samples) * 1000
    results.ratio(
        f"training sample / decode, resize, normalise ({setting})", seconds["sample"], seconds["floor"], TARGET
    )
    results.ratio(f"training batch / the same ({setting}; floor {floor:.2f} ms)", seconds["batch"], seconds["floor"])


def each(function: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Calls the function with each item, and keeps no result."""
    for item in items:
        function(item)


def plain(path: str, size: tuple[int, int], mean: Tensor, std: Tensor) -> Tensor:
    """Returns the normalised pixels of a file, the plain way."""
    with Image.open(path) as image:
        resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous().float()
    return pixels.div_(255).sub_(mean).div_(std)


def batches(samples: TrainDataset, collator: TrainCollator) -> None:
    """Makes all samples, a batch at a time."""
    for first in range(0, len(samples), BATCH):
        collator([samples[i, 0, i] for i in range(first, min(first + BATCH, len(samples)))])


if __name__ == "__main__":
    main()
