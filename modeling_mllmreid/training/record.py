"""What a run was and on what it ran, for the model card: run.json beside the weights it speaks of."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
from datasets import DatasetDict
from transformers import TrainingArguments

from ..data.published import published_counts
from ..evaluation.report import write_json
from ..evaluation.weights import weights_digest
from .adapters import AdapterArguments
from .arguments import BatchArguments

PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "datasets", "mllmreid")


def write_record(
    folder: str | os.PathLike[str],
    dataset: DatasetDict,
    *,
    base_model: str,
    adapters: AdapterArguments,
    batches: BatchArguments,
    texts: Iterable[Mapping[str, Any]],
    seconds: float,
    devices: str,
) -> None:
    """Writes `run.json` for the weights that lie in the folder.

    base_model: what the training began with. texts: provenances of generated captions and continuations. seconds: of
    the training alone. devices: what it was trained on, in words.
    """
    unique = {tuple(sorted((key, str(value)) for key, value in provenance.items())) for provenance in texts}
    record = {
        "weights": weights_digest(folder),
        # A path from the root: a relative one reads like a name on the Hub.
        "base_model": os.path.abspath(base_model) if os.path.isdir(base_model) else base_model,
        "data": {
            part: {"images": len(rows), "persons": len({*zip(rows["source"][:], rows["person_id"][:], strict=True)})}
            for part, rows in dataset.items()
        },
        "published_counts": published_counts(dataset),
        "sources": sorted({source for rows in dataset.values() for source in rows["source"][:]}),
        "texts": [dict(provenance) for provenance in sorted(unique)],
        "adapters": adapters.to_record(),
        "batches": {name: value for name, value in asdict(batches).items() if name != "texts"},
        "hardware": devices,
        "environment": versions(),
        "seconds": round(seconds, 1),
    }
    write_json(os.path.join(folder, "run.json"), record)


def devices_of(args: TrainingArguments) -> str:
    """What a training used, in words: of this machine's GPUs one in each process."""
    return hardware(args.device, args.world_size)


def hardware(device: torch.device, processes: int) -> str:
    """What some processes used, each such a device, in words."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{processes} x {torch.cuda.get_device_name(device)} ({memory:.0f} GiB)"
    threads = f"{torch.get_num_threads()} threads" + (f" in each of {processes} processes" if processes > 1 else "")
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {threads}"


def versions() -> dict[str, str]:
    """The installed versions of what the result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
