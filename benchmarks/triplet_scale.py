"""Compares the scales of the triplet loss (`triplet_scale`) and a warm-up on the val people of a rendered data set.

python benchmarks/triplet_scale.py [--model FOLDER] [--settings none batch unit warmup] [--seeds 0 1 2] [--steps 600]
                                   [--output FILE] [--field value ...]

Without `--model` it trains the demo's tiny model from random weights, on the ReID losses alone. With a native model,
`--field value` are options of `run_reid.py train`, such as `--language_model lora`.
The result is a table in Markdown: the losses and the gradient norm of the first steps, and mAP on val for each feature.
"""

import argparse
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch
from comparison import DEFAULTS, GROUPS, compare
from datasets import DatasetDict

from modeling_mllmreid.model import MllmReIDModel
from modeling_mllmreid.options.parser import build_options
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.synthetic.flat.captions import sample_descriptions
from modeling_mllmreid.training.loading import load_model
from modeling_mllmreid.training.run import train_reid
from modeling_mllmreid.utils.processes import this_process

SCALES: dict[str, dict[str, Any]] = {
    "none": {"triplet_scale": "none"},
    "batch": {"triplet_scale": "batch"},
    "unit": {"triplet_scale": "unit"},
    "warmup": {"triplet_scale": "none", "reid_warmup_steps": 100},
}
SETTINGS: dict[str, Any] = {**DEFAULTS, "learning_rate": 2e-3, "loss_lambda": 1.0, "logging_steps": 1}


def train(
    name: str, seed: int, options: argparse.Namespace, fields: dict[str, Any], dataset: DatasetDict, output: Path
) -> dict[str, float]:
    """Trains one model and returns its first losses and its val metrics."""
    fixed = {"output_dir": str(output), "seed": seed, "max_steps": options.steps, "warmup_steps": 50}
    values = {**SETTINGS, **fixed, **fields, **SCALES[name], "model": options.model or "tiny"}
    model_args, method, adapters, batches, args = build_options(GROUPS, values, "train")
    torch.manual_seed(seed)
    if options.model is None:
        texts = [text for texts in sample_descriptions(300, seed=0) for text in texts]
        processor = build_processor(texts, height=128, width=64, patch_size=16)
        mllm = build_tiny_llava(processor, hidden_size=64, tower_layers=2, lm_layers=2, seed=seed)
        size = {"height": 128, "width": 64, "image_prefix_ids": processor.image_prefix_ids}
        model = MllmReIDModel.from_mllm(mllm, **{**method.given(), **size})
    else:
        model, processor = load_model(model_args, method.given(), adapters, this_process().device)
    trainer = train_reid(model, processor, dataset, batches, args).trainer
    first = [entry for entry in trainer.state.log_history if "loss" in entry][:5]
    result = {key: mean(entry[key] for entry in first) for key in first[0] if key.startswith("triplet_")}
    result["gradient norm"] = mean(entry["grad_norm"] for entry in first)
    metrics = trainer.evaluate()
    return result | {f"{feature} mAP": 100 * metrics[f"eval_{feature}_mAP"] for feature in ("llm", "vision", "concat")}


def cell(values: list[float]) -> str:
    """Writes values over the seeds."""
    return f"{mean(values):.3g} ± {pstdev(values):.2g}"


if __name__ == "__main__":
    compare(__doc__, "setting", tuple(SCALES), train, steps=600, model_required=False, images_per_camera=5, cell=cell)
