"""Compares the poolings of an encoder without a language model on the val people of a rendered data set.

python benchmarks/pooling.py --model facebook/dinov2-small [--poolings class mean gem class_mean] [--seeds 0 1 2]
                             [--steps 40] [--output FILE] [--field value ...]

`--field value` are options of `run_reid.py train`. The result is a table in Markdown: mAP and Rank-1 on val before and
after training, mean and standard deviation over the seeds.
"""

import argparse
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from comparison import DEFAULTS, GROUPS, compare
from datasets import DatasetDict
from transformers import set_seed

from modeling_mllmreid.options.parser import build_options
from modeling_mllmreid.training.loading import load_encoder
from modeling_mllmreid.training.run import train_reid

POOLINGS = ("class", "mean", "gem", "class_mean")
SETTINGS: dict[str, Any] = {
    **DEFAULTS,
    "learning_rate": 5e-5,
    "learning_rates": {"reid_head|pooling": 1e-3},
    "eval_on_start": True,
    "logging_steps": 10,
}


def train(
    name: str, seed: int, options: argparse.Namespace, fields: dict[str, Any], dataset: DatasetDict, output: Path
) -> dict[str, float]:
    """Trains one model and returns its val metrics in percent, before and after."""
    fixed = {"output_dir": str(output), "seed": seed, "max_steps": options.steps, "pooling": name}
    values = {**SETTINGS, **fields, **fixed, "model": options.model}
    model_args, method, adapters, batches, args = build_options(GROUPS, values, "train")
    set_seed(seed)
    model, processor = load_encoder(model_args, method.given(), adapters)
    trainer = train_reid(model, processor, dataset, batches, args).trainer
    before = next(entry for entry in trainer.state.log_history if "eval_mAP" in entry)
    after = trainer.evaluate()
    result = {f"mAP {when}": 100 * of["eval_mAP"] for when, of in (("before", before), ("after", after))}
    return result | {"Rank-1 after": 100 * after["eval_rank1"]}


def cell(values: list[float]) -> str:
    """Writes percentages over the seeds."""
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


if __name__ == "__main__":
    compare(__doc__, "pooling", POOLINGS, train, steps=40, model_required=True, images_per_camera=2, cell=cell)
