"""Compares the poolings of an encoder without a language model on the val people of a rendered data set.

python benchmarks/pooling.py --model facebook/dinov2-small [--poolings class mean gem class_mean] [--seeds 3]
                             [--steps 40] [--output FILE] [--field value ...]

`--field value` are options of `run_reid.py train`. Every pooling has the same people, batches, steps and seeds. Only
val people decide; no test person is looked at. The result is a table in Markdown: mAP and Rank-1 on val before and
after training, mean and standard deviation over the seeds.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from transformers import set_seed

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.options.arguments import MethodArguments, ModelArguments
from modeling_mllmreid.options.parser import build_options, read_options
from modeling_mllmreid.synthetic.write import write_pedestrians
from modeling_mllmreid.training.adapters import AdapterArguments
from modeling_mllmreid.training.arguments import BatchArguments, ReIDTrainingArguments
from modeling_mllmreid.training.loading import load_encoder
from modeling_mllmreid.training.run import train_reid

POOLINGS = ("class", "mean", "gem", "class_mean")
GROUPS = (ModelArguments, MethodArguments, AdapterArguments, BatchArguments, ReIDTrainingArguments)
DEFAULTS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "learning_rates": {"reid_head|pooling": 1e-3},
    "identities_per_batch": 8,
    "images_per_identity": 4,
    "val_identities": 40,
    "eval_strategy": "no",
    "eval_on_start": True,
    "save_strategy": "no",
    "logging_steps": 10,
    "diagnostics_steps": 0,
    "disable_tqdm": True,
    "use_cpu": not torch.cuda.is_available(),
}


def main() -> None:
    """Trains with every pooling and every seed, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Folder or Hub name of a vision encoder.")
    parser.add_argument("--poolings", nargs="+", choices=POOLINGS, default=list(POOLINGS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", type=Path, help="File that each finished run is added to, as JSON lines.")
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        people = Path(folder) / "people"
        write_pedestrians(people, train_identities=140, test_identities=1, images_per_camera=2, cameras=4)
        dataset = load_reid_dataset("market1501", data_dir=people)
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.poolings}
        for seed in range(options.seeds):
            for name in options.poolings:
                run = train(name, seed, options, rest, dataset, Path(folder) / f"{name}-{seed}")
                runs[name].append(run)
                line = json.dumps({"pooling": name, "seed": seed, **run})
                print(line, flush=True)
                if options.output is not None:
                    with open(options.output, "a", encoding="utf-8") as file:
                        file.write(f"{line}\n")
    columns = list(next(iter(runs.values()))[0])
    print("| pooling | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for name, results in runs.items():
        values = [[result[column] for result in results] for column in columns]
        cells = [f"{mean(v):.1f} ± {stdev(v):.1f}" if len(v) > 1 else f"{v[0]:.1f}" for v in values]
        print(f"| {name} | " + " | ".join(cells) + " |")


def train(
    name: str, seed: int, options: argparse.Namespace, rest: list[str], dataset: Any, output: Path
) -> dict[str, float]:
    """Trains one model and returns its val metrics in percent, before and after."""
    fixed = {"output_dir": str(output), "seed": seed, "max_steps": options.steps, "pooling": name}
    values = {**DEFAULTS, **read_options(GROUPS, rest, "train"), **fixed, "model": options.model}
    model_args, method, adapters, batches, args = build_options(GROUPS, values, "train")
    set_seed(seed)
    model, processor = load_encoder(model_args, method.given(), adapters)
    trainer = train_reid(model, processor, dataset, batches, args).trainer
    before = next(entry for entry in trainer.state.log_history if "eval_mAP" in entry)
    after = trainer.evaluate()
    result = {f"mAP {when}": 100 * of["eval_mAP"] for when, of in (("before", before), ("after", after))}
    return result | {"Rank-1 after": 100 * after["eval_rank1"]}


if __name__ == "__main__":
    main()
