"""What the comparisons on rendered val people share: options, people, one run for each setting and seed, the table.

Every setting has the same people, batches, steps and seeds. Only val people decide; no test person is looked at.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict

from modeling_mllmreid.data.load import load_reid_dataset
from modeling_mllmreid.options.arguments import MethodArguments, ModelArguments
from modeling_mllmreid.options.parser import read_options
from modeling_mllmreid.synthetic.flat.write import write_pedestrians
from modeling_mllmreid.training.adapters import AdapterArguments
from modeling_mllmreid.training.arguments import ReIDTrainingArguments
from modeling_mllmreid.training.batch_arguments import BatchArguments

GROUPS = (ModelArguments, MethodArguments, AdapterArguments, BatchArguments, ReIDTrainingArguments)
DEFAULTS: dict[str, Any] = {
    "identities_per_batch": 8,
    "images_per_identity": 4,
    "val_identities": 40,
    "eval_strategy": "no",
    "save_strategy": "no",
    "diagnostics_steps": 0,
    "disable_tqdm": True,
    "use_cpu": not torch.cuda.is_available(),
}


def compare(
    description: str | None,
    label: str,
    names: Sequence[str],
    train: Callable[[str, int, argparse.Namespace, dict[str, Any], DatasetDict, Path], dict[str, float]],
    *,
    steps: int,
    model_required: bool,
    images_per_camera: int,
    cell: Callable[[list[float]], str],
) -> None:
    """Reads the options, trains with every name and every seed, and prints a table of the results in Markdown.

    Args:
        description (`str`): Help of the script.
        label (`str`): What is compared; the option `--{label}s` chooses among `names`.
        names (`Sequence[str]`): All that can be compared.
        train (`Callable`): Trains one model: (name, seed, options, fields of `train`, people, folder) to its results.
        steps (`int`): Default number of steps.
        model_required (`bool`): Whether `--model` must be given.
        images_per_camera (`int`): Images of each rendered person from each of four cameras.
        cell (`Callable`): Writes the results over the seeds as a cell.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=model_required, help="Folder or Hub name of a model.")
    parser.add_argument(f"--{label}s", dest="names", nargs="+", choices=names, default=list(names))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="The seeds themselves.")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--output", type=Path, help="File that each finished run is added to, as JSON lines.")
    options, rest = parser.parse_known_args()
    fields = read_options(GROUPS, rest, "train")
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.names}
    with tempfile.TemporaryDirectory() as folder:
        people = Path(folder) / "people"
        write_pedestrians(
            people, train_identities=140, test_identities=1, images_per_camera=images_per_camera, cameras=4
        )
        dataset = load_reid_dataset("market1501", data_dir=people, captions_file=str(people / "reid_raw.json"))
        for seed in options.seeds:
            for name in options.names:
                run = train(name, seed, options, fields, dataset, Path(folder) / f"{name}-{seed}")
                runs[name].append(run)
                line = json.dumps({label: name, "seed": seed, **run})
                print(line, flush=True)
                if options.output is not None:
                    with open(options.output, "a", encoding="utf-8") as file:
                        file.write(f"{line}\n")
    columns = list(next(iter(runs.values()))[0])
    print(f"| {label} | " + " | ".join(columns) + " |\n|---" + "|---" * len(columns) + "|")
    for name, results in runs.items():
        print(f"| {name} | " + " | ".join(cell([run[column] for run in results]) for column in columns) + " |")
