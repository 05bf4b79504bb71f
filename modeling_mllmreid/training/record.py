"""`run.json`: how the weights of a checkpoint were trained, on which machine, with which versions."""

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from transformers import TrainingArguments

from ..data.published import published_counts
from ..data.seen_images import people_digests
from ..retrieval.embeddings import weights_digest
from ..utils.outputs import write_json
from .adapters import AdapterArguments
from .batch_arguments import BatchArguments

# Packages whose versions `run.json` records.
PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "datasets", "mllmreid")


def write_record(
    folder: str | os.PathLike[str],
    dataset: DatasetDict,
    *,
    base_model: str,
    adapters: AdapterArguments,
    batches: BatchArguments,
    texts: Iterable[Mapping[str, Any]],
    language: bool,
    seconds: float | None,
    devices: str,
) -> None:
    """Writes `run.json`, the record of how the weights in a folder were trained.

    Args:
        folder (`str` or `os.PathLike`): Folder of the trained model.
        dataset (`datasets.DatasetDict`): All splits of the data set.
        base_model (`str`): Model that the training started with.
        adapters (`AdapterArguments`): What was trained.
        batches (`BatchArguments`): Settings of the batches.
        texts (`Iterable[Mapping]`): Provenances of generated captions and continuations.
        language (`bool`): Whether the model has a language model.
        seconds (`float`, *optional*): Duration of the training in seconds; None if it is not known.
        devices (`str`): Devices in words, from `describe_devices`.
    """
    provenances = {tuple(sorted((key, str(value)) for key, value in provenance.items())) for provenance in texts}
    record = {
        "weights": weights_digest(folder),
        # An absolute path, as a relative one reads like a name on the Hub.
        "base_model": os.path.abspath(base_model) if os.path.isdir(base_model) else base_model,
        "data": {
            name: {"images": len(split), "persons": len({*zip(split["source"][:], split["person_id"][:], strict=True)})}
            for name, split in dataset.items()
        },
        "published_counts": published_counts(dataset),
        "sources": sorted({source for split in dataset.values() for source in split["source"][:]}),
        "texts": [dict(provenance) for provenance in sorted(provenances)],
        "adapters": adapters.to_record(language=language),
        "batches": batches.to_record(language=language),
        "hardware": devices,
        "environment": versions(),
        "seconds": None if seconds is None else round(seconds, 3),
        # For `evaluate` and `calibrate`, which know them again. Nothing of it is published.
        "people": people_digests(dataset[name] for name in ("train", "val") if name in dataset),
    }
    write_json(Path(folder) / "run.json", record)


def describe_devices(args: TrainingArguments) -> str:
    """Returns the devices of a training in words, one GPU for each process."""
    return hardware(args.device, args.world_size)


def hardware(device: torch.device, processes: int) -> str:
    """Returns a device and the number of processes that use such a device, in words."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 2**30
        return f"{processes} x {torch.cuda.get_device_name(device)} ({memory:.0f} GiB)"
    threads = f"{torch.get_num_threads()} threads" + (f" in each of {processes} processes" if processes > 1 else "")
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {threads}"


def versions() -> dict[str, str]:
    """Returns the installed versions of Python and of the packages that affect the result."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed
