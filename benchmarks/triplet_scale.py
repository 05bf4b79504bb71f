"""Compares the scales of the triplet loss (`triplet_scale`) and a warm-up on the val people of a rendered data set.

python benchmarks/triplet_scale.py [--model FOLDER] [--settings none batch unit warmup] [--seeds 0 1 2] [--steps 600]
                                   [--field value ...]

Without `--model` it trains the demo's tiny model from random weights, on the ReID losses alone. With a native model,
`--field value` are options of `run_reid.py train`, such as `--language_model lora`. Every setting has the same people,
batches, steps and seeds. Only val people decide; no test person is looked at.
The result is a table in Markdown: the losses and the gradient norm of the first steps, and mAP on val for each feature.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import torch

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.options.arguments import MethodArguments, ModelArguments
from modeling_mllmreid.options.parser import build_options, read_options
from modeling_mllmreid.research.tiny_llava import build_processor, build_tiny_llava
from modeling_mllmreid.synthetic.people.captions import sample_descriptions
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.training.adapters import AdapterArguments
from modeling_mllmreid.training.arguments import BatchArguments, ReIDTrainingArguments
from modeling_mllmreid.training.loading import load_model
from modeling_mllmreid.training.run import train_reid
from modeling_mllmreid.utils.processes import this_process

SETTINGS: dict[str, dict[str, Any]] = {
    "none": {"triplet_scale": "none"},
    "batch": {"triplet_scale": "batch"},
    "unit": {"triplet_scale": "unit"},
    "warmup": {"triplet_scale": "none", "reid_warmup_steps": 100},
}
GROUPS = (ModelArguments, MethodArguments, AdapterArguments, BatchArguments, ReIDTrainingArguments)
DEFAULTS: dict[str, Any] = {
    "learning_rate": 2e-3,
    "identities_per_batch": 8,
    "images_per_identity": 4,
    "loss_lambda": 1.0,
    "val_identities": 40,
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_steps": 1,
    "diagnostics_steps": 0,
    "disable_tqdm": True,
    "use_cpu": not torch.cuda.is_available(),
}


def main() -> None:
    """Trains every setting with every seed and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Folder of a native multimodal LLM. Default: the demo's tiny model.")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--output", type=Path, help="File that each finished run is added to, as JSON lines.")
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        people = Path(folder) / "people"
        write_pedestrians(people, train_identities=140, test_identities=1, images_per_camera=5, cameras=4)
        dataset = load_reid_dataset("market1501", data_dir=people, captions_file=str(people / "reid_raw.json"))
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.settings}
        for seed in options.seeds:
            for name in options.settings:
                run = train(name, seed, options, rest, dataset, Path(folder) / f"{name}-{seed}")
                runs[name].append(run)
                print(json.dumps({"setting": name, "seed": seed, **run}), flush=True)
                if options.output is not None:
                    with open(options.output, "a", encoding="utf-8") as file:
                        file.write(json.dumps({"setting": name, "seed": seed, **run}) + "\n")
    columns = list(next(iter(runs.values()))[0])
    print("| setting | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for name, results in runs.items():
        cells = [f"{mean(r[c] for r in results):.3g} ± {pstdev([r[c] for r in results]):.2g}" for c in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")


def train(
    name: str, seed: int, options: argparse.Namespace, rest: list[str], dataset: Any, output: Path
) -> dict[str, float]:
    """Trains one model and returns its first losses and its val metrics."""
    fixed = {"output_dir": str(output), "seed": seed, "max_steps": options.steps, "warmup_steps": 50}
    values = {
        **DEFAULTS,
        **fixed,
        **read_options(GROUPS, rest, "train"),
        **SETTINGS[name],
        "model": options.model or "tiny",
    }
    model_args, method, adapters, batches, args = build_options(GROUPS, values, "train")
    torch.manual_seed(seed)
    if options.model is None:
        from modeling_mllmreid.model import MllmReIDModel

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


if __name__ == "__main__":
    main()
