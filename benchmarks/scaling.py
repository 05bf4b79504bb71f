"""Measures how the cost of training and encoding grows with batch, image tokens, identities and processes.

python benchmarks/scaling.py [--size small] [--parts batch tokens identities ranks] [--repeats 6] [--field value ...]

The sizes of each quantity take turns. Prints the seconds at each size, the cost of the last size relative to the first,
and the exponent b of a fitted cost = a * size^b. 1 is linear, 0 is free.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import timing
import torch
from models import make_batches
from training import ByHand, make_trainer, run_parts, start_worker

from modeling_mllmreid.training.batch_arguments import BatchArguments
from modeling_mllmreid.training.batches import TrainCollator
from modeling_mllmreid.training.trainer import ReIDTrainer


def main() -> None:
    """Runs the measurements of `--parts`."""
    run_parts(__doc__, {part.__name__: part for part in (batch, tokens, identities, ranks)}, repeats=6)


def batch(args: Any, results: timing.Results) -> None:
    """Measures the number of images in a batch, with half to twice the people of `identities_per_batch`."""
    trainer = make_trainer(args)[0]
    people = trainer.args.identities_per_batch
    batches = [new_batch(trainer, number, trainer.processing_class) for number in (people // 2, people, 2 * people)]
    fit_both("images", trainer, [len(batch["pixel_values"]) for batch in batches], batches, args, results)


def tokens(args: Any, results: timing.Results) -> None:
    """Measures the number of image tokens, with crops of several sizes and one aspect ratio."""
    trainer = make_trainer(args)[0]
    processor, batches, sizes = trainer.processing_class, [], []
    for patches in (3, 6, 9, 12):
        other = copy.copy(processor)
        other.image_processor = copy.deepcopy(processor.image_processor)
        side = patches * processor.unit
        other.image_processor.size = {"height": 2 * side, "width": side}
        sizes.append(other.num_image_tokens)
        batches.append(new_batch(trainer, trainer.args.identities_per_batch, other))
    fit_both("image tokens", trainer, sizes, batches, args, results)


def identities(args: Any, results: timing.Results) -> None:
    """Measures the number of identities of the ID classifiers."""
    trainer, batches = make_trainer(args)
    model, functions = trainer.model.train(), {}
    sizes = [100, 1_000, 10_000, 100_000]
    for size in sizes:
        model.set_num_identities(size)
        classifiers = {name: head.classifier for name, head in model.reid_head.items()}
        functions[size] = partial(step_with_classifiers, classifiers, ByHand(trainer, batches[:1]))
    fit("training step, identities", timing.alternate(functions, args.repeats, args.device), args, results)


def ranks(args: Any, results: timing.Results) -> None:
    """Measures the number of processes. Each has its own batch, and the ReID losses read the images of all."""
    if args.device == "cuda" and torch.cuda.device_count() < 2:
        return results.skip("processes", "there is one GPU")
    seconds: dict[Any, list[float]] = {1: [], 2: []}
    for _ in range(2):
        for count in seconds:
            seconds[count].append(start_worker(args, {}, count)["seconds"])
    fit("training step, processes", seconds, args, results)


def new_batch(trainer: ReIDTrainer, people: int, processor: Any) -> dict[str, torch.Tensor]:
    """Makes a batch of the trainer with another number of people or another processor."""
    images = trainer.args.images_per_identity
    collator = TrainCollator(processor, BatchArguments(), language=True, reid_text=False)
    return make_batches(processor, collator, people, images, target_tokens=32, count=1)[0]


def step_with_classifiers(classifiers: dict[str, torch.nn.Module], by_hand: ByHand) -> None:
    """Runs a step with these ID classifiers."""
    for name, classifier in classifiers.items():
        by_hand.model.reid_head[name].classifier = classifier
    by_hand(0)


def fit_both(name: str, trainer: ReIDTrainer, sizes: list[int], batches: list, args: Any, results: Any) -> None:
    """Measures training and encoding on each of the batches."""
    model, by_hand = trainer.model, ByHand(trainer, batches)
    model.train()
    functions: dict[Any, Callable[[], Any]] = {size: partial(by_hand, i) for i, size in enumerate(sizes)}
    fit(f"training step, {name}", timing.alternate(functions, args.repeats, args.device), args, results)
    model.eval()
    pixels = [batch["pixel_values"].to(args.device) for batch in batches]
    functions = {size: partial(model.encode_images, images) for size, images in zip(sizes, pixels, strict=True)}
    with torch.inference_mode():
        fit(f"encoding, {name}", timing.alternate(functions, args.repeats, args.device), args, results)


def fit(name: str, seconds: dict[Any, list[float]], args: Any, results: timing.Results) -> None:
    """Prints the growth over the sizes."""
    sizes, medians = list(seconds), [float(np.median(values)) for values in seconds.values()]
    exponent = np.polyfit(np.log(sizes), np.log(medians), 1)[0]
    times = " ".join(f"{median:.3f}" for median in medians)
    size_range = f"{sizes[0]:,} to {sizes[-1]:,} ({args.size}; {times} s)"
    results.add(f"{name} {size_range}", f"x {medians[-1] / medians[0]:.2f}, exponent {exponent:.2f}")


if __name__ == "__main__":
    main()
