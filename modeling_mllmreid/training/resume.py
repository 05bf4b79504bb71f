"""Resuming: the fingerprint of a run, and the checkpoint that a command continues from."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..data.contract import person_names
from ..data.seen_images import image_bytes
from ..model import ImageEncoder, ImageEncoderProcessor, MllmReIDModel, MllmReIDProcessor
from ..model.adapters import adapter_settings
from ..model.backbone_loading import weights_fingerprint
from ..text.instructions import instruction_texts
from ..utils.checkpoint_formats import ResumedStateFile, RunFingerprintFile
from ..utils.errors import UserError
from ..utils.json_files import read_json
from .arguments import ReIDTrainingArguments
from .batch_arguments import BatchArguments
from .batches import TrainDataset
from .setting_errors import setting_errors


def identities_digest(samples: TrainDataset) -> str:
    """Returns a digest of the training identities in the order of their labels.

    It covers the data set, the name or number, and the bytes of one image of each person, the first by file name. Names
    alone are not enough, as many data sets number people from 1. The order of the images does not matter.

    Args:
        samples (`TrainDataset`): The training samples.

    Returns:
        `str`: A SHA-256, from which no name can be read.
    """
    first_images: dict[int, int] = {}
    for index, label in enumerate(samples.labels):
        if label not in first_images or samples.file_names[index] < samples.file_names[first_images[label]]:
            first_images[label] = index
    digest = hashlib.sha256()
    for label in sorted(first_images):
        index = first_images[label]
        for name in (samples.sources[index], samples.person_names[index]):
            digest.update(name.encode(errors="surrogateescape") + b"\0")
        digest.update(hashlib.sha256(image_bytes(samples.images[index])).digest())
    return digest.hexdigest()


RUN_FILE = "run_facts.json"
OTHER_CHECKPOINT = "give another checkpoint as resume_from_checkpoint, or false to start again"
# Settings that change no weight, only logs, speed and where results are written.
NEUTRAL_SETTINGS = re.compile(
    r"output_dir|resume_from_checkpoint|logging_.*|log_.*|report_to|run_name|project|trackio_.*|hub_.*|push_to_hub|"
    r"disable_tqdm|dataloader_.*|save_(total_limit|on_each_node|only_model)|eval_accumulation_steps|ddp_timeout|"
    r"use_cpu|local_rank|_n_gpu|per_device_eval_batch_size|diagnostics_steps|max_skipped_steps|"
    r"enable_jit_checkpoint|do_.*|debug|include_.*|skip_memory_metrics|.*token.*"
)
# Settings that older versions did not have, with the value that they stand for there.
ADDED_SETTINGS = {
    "reid_warmup_steps": 0,
    "triplet_scale": "none",
    "color_jitter": 0.0,
    "downscale": 0.0,
    "pair_weight": 0.0,
    "similar_people": 1,
}
# Configuration fields that other entries of the fingerprint cover, or that only record the origin of the model.
ORIGIN_FIELDS = frozenset(
    {
        "mllm_config",
        "vision_config",
        "image_prefix_ids",
        "trained_on",
        "overlap",
        "base_licence",
        "backbone_fingerprint",
        "identities_digest",
    }
)
# Settings of the image processor that change pixel values.
PIXEL_SETTINGS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def run_fingerprint(
    args: ReIDTrainingArguments,
    batches: BatchArguments,
    model: ImageEncoder,
    samples: TrainDataset,
    *,
    val: Dataset | None = None,
    sharding: str | None = None,
) -> dict[str, Any]:
    """Returns what two runs must share for one to continue from a checkpoint of the other.

    Args:
        args (`ReIDTrainingArguments`): Training arguments.
        batches (`BatchArguments`): Settings of the batches.
        model (`MllmReIDModel` or `MllmReIDVisionModel`): The model before training.
        samples (`TrainDataset`): The training samples.
        val (`datasets.Dataset`, *optional*): The split that selects checkpoints.
        sharding (`str`, *optional*): Engine that shards the model, as each engine reads only its own checkpoints.

    Returns:
        `dict[str, Any]`: Settings, and digests of the start, the trained weights, the data, the inputs and val.
    """
    trained = [(name, list(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    people = _people(samples.person_ids, samples.person_names)
    data = [samples.file_names, people, samples.camera_ids, samples.sources, samples.texts]
    return {
        "settings": {**_settings(args, batches, model), "sharding": sharding},
        "start": _start(model),
        "trained": _digest(trained),
        "data": _digest(data),
        "inputs": _inputs(samples.processor, batches),
        "val": None if val is None else _digest(_columns_of_val(val)),
        "identities": model.config.identities_digest,
    }


def _columns_of_val(val: Dataset) -> list[list[Any]]:
    """Returns the file names, people, cameras and sources of val."""
    people = _people(val["person_id"][:], person_names(val))
    return [val["file_name"][:], people, val["camera_id"][:], val["source"][:]]


def _people(numbers: list[int], names: list[str]) -> list[int] | list[str]:
    """Returns the numbers of people, or their names: those of own data are numbered anew when a person is added."""
    return numbers if names == list(map(str, numbers)) else names


def _settings(args: ReIDTrainingArguments, batches: BatchArguments, model: ImageEncoder) -> dict[str, Any]:
    """Returns every setting that changes a weight, by name."""
    arguments = json.loads(json.dumps(args.to_public_dict(), default=str))
    settings = {name: value for name, value in arguments.items() if not NEUTRAL_SETTINGS.fullmatch(name)}
    # A list, as the order of the patterns matters: the first match counts.
    settings["learning_rates"] = [list(pair) for pair in settings["learning_rates"].items()]
    settings |= {name: value for name, value in asdict(batches).items() if name != "texts"}
    config = json.loads(json.dumps(model.config.to_dict(), default=str))
    own_fields = type(model.config).__annotations__
    settings |= {name: value for name, value in config.items() if name in own_fields and name not in ORIGIN_FIELDS}
    if isinstance(model, MllmReIDModel):
        lora = adapter_settings(model.mllm) or {}
        settings |= {name: lora.get(name) for name in ("lora_alpha", "lora_dropout")}
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    return {**settings, "dtypes": dtypes, "processes": args.world_size}


def _inputs(processor: ImageEncoderProcessor, batches: BatchArguments) -> str:
    """Returns a digest of how crops and instructions become inputs of the model."""
    pixels = [getattr(processor.image_processor, name, None) for name in PIXEL_SETTINGS]
    prompts = []
    if isinstance(processor, MllmReIDProcessor):
        prompts = [
            (processor.image_prompt_ids(text), processor.text_prompt_ids("", text))
            for text in instruction_texts(batches.instruction)
        ]
    return _digest([pixels, prompts])


def _start(model: ImageEncoder) -> list[Any]:
    """Returns the configuration and a few weights of the wrapped model before training, which identify it."""
    native: Any = model.mllm if isinstance(model, MllmReIDModel) else model.tower
    numbers = []
    for name, parameter in native.named_parameters():
        # A new LoRA is random, so it does not identify the model. Sharding engines leave empty parameters.
        if parameter.is_floating_point() and parameter.numel() and ".lora_A." not in name:
            flat = parameter.detach().flatten()
            indices = torch.linspace(0, flat.numel() - 1, 4, dtype=torch.float64).round().long()
            numbers += [f"{value:.6g}" for value in flat[indices.to(flat.device)].float().tolist()]
    fingerprint = weights_fingerprint(native) if isinstance(model, MllmReIDModel) else []
    return [*fingerprint, _digest([_without_origin(native.config.to_dict()), numbers])]


def _without_origin(config: Any) -> Any:
    """Returns a configuration without its origin, the fields that saving adds, and the cache setting."""
    if not isinstance(config, dict):
        return str(config)
    ignored = {"transformers_version", "architectures", "dtype", "use_cache"}
    return {
        name: _without_origin(value) for name, value in config.items() if str(name)[:1] != "_" and name not in ignored
    }


def last_checkpoint(folder: Path) -> Path | None:
    """Returns the complete checkpoint with the most steps in a folder, or None."""
    checkpoints = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if number.isdigit() and (path / "trainer_state.json").is_file():
            checkpoints[int(number)] = path
    return checkpoints[max(checkpoints)] if checkpoints else None


def named_checkpoint(args: ReIDTrainingArguments) -> Path | None:
    """Returns the folder that `resume_from_checkpoint` names; None if it is unset, true or false."""
    value = args.resume_from_checkpoint
    return None if value is None or str(value).lower() in ("true", "false", "none") else Path(value)


def refuse_absent_checkpoint(args: ReIDTrainingArguments) -> None:
    """Raises UserError if the folder of `resume_from_checkpoint` is not a checkpoint of a training."""
    named = named_checkpoint(args)
    if named is None:
        return
    if not named.is_dir():
        raise UserError(f"resume_from_checkpoint {named}: no such folder: give a checkpoint-* folder, or true")
    if not (named / "trainer_state.json").is_file():
        raise UserError(
            f"resume_from_checkpoint {named}: not a checkpoint of a training, as it has no trainer_state.json: give a "
            "checkpoint-* folder, or give a model to fine-tune as model"
        )


def checkpoint_to_resume(args: ReIDTrainingArguments, fingerprint: Mapping[str, Any]) -> Path | None:
    """Returns the checkpoint that a training continues from.

    `resume_from_checkpoint` decides. Unset: the last checkpoint in `output_dir`, which must belong to the same run, so
    that the same command continues after a crash. "true": the last checkpoint of any run. "false": none, and those in
    `output_dir` are removed. Otherwise: the folder that it names.

    Args:
        args (`ReIDTrainingArguments`): Training arguments.
        fingerprint (`Mapping[str, Any]`): Fingerprint of the run, from `run_fingerprint`.

    Returns:
        `Path`: The checkpoint, or None to start again.

    Raises:
        UserError: The checkpoint is missing or broken, belongs to another run, or has other identities.
    """
    checkpoint = _chosen_checkpoint(args, fingerprint)
    if checkpoint is not None:
        path = checkpoint / "trainer_state.json"
        read_json(path, ResumedStateFile, remedy=OTHER_CHECKPOINT)
        with setting_errors(str(path), OTHER_CHECKPOINT):
            TrainerState.load_from_json(str(path))
    return checkpoint


def is_finished(checkpoint: Path) -> bool:
    """Returns whether a checkpoint has all steps of its training."""
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
    return bool(state.global_step >= state.max_steps > 0)


def _chosen_checkpoint(args: ReIDTrainingArguments, fingerprint: Mapping[str, Any]) -> Path | None:
    """Returns the checkpoint by the rules of `checkpoint_to_resume`, without reading its state."""
    refuse_absent_checkpoint(args)
    folder, choice = Path(str(args.output_dir)), str(args.resume_from_checkpoint).lower()
    named = named_checkpoint(args)
    if named is not None:
        _refuse_other_identities(named, fingerprint)
        return named
    last = last_checkpoint(folder)
    if choice == "false":
        if args.should_save:
            for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                shutil.rmtree(path)
        return None
    if choice == "true":
        if last is None:
            raise UserError(f"resume_from_checkpoint: no checkpoint in {folder}: leave it out to start again")
        _refuse_other_identities(last, fingerprint)
        return last
    if last is None:
        return None
    difference = _difference(last, fingerprint)
    if difference:
        raise UserError(
            f"{last}: belongs to a run with other settings ({difference}): give another output_dir, or "
            "resume_from_checkpoint true to continue from it all the same, false to remove it and start again"
        )
    return last


def _refuse_other_identities(checkpoint: Path, fingerprint: Mapping[str, Any]) -> None:
    """Raises UserError if the checkpoint's ID classifier has other identities than the training data."""
    identities = read_fingerprint(checkpoint).get("identities")
    if identities is not None and identities != fingerprint["identities"]:
        raise UserError(
            f"resume_from_checkpoint {checkpoint}: its ID classifier was trained on other people: give it as model "
            "instead, which makes a new classifier"
        )


def _difference(checkpoint: Path, fingerprint: Mapping[str, Any]) -> str:
    """Returns the first difference between the checkpoint's run and this one, in words; empty if there is none."""
    stored = read_fingerprint(checkpoint)
    if not stored:
        return f"it has no {RUN_FILE}"
    before, now = stored["settings"], fingerprint["settings"]
    # An encoder without a language model has fewer of them.
    before = {name: value for name, value in ADDED_SETTINGS.items() if name in now} | before
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if stored.get("identities") != fingerprint["identities"] and set(names) <= {"num_identities"}:
        return "other people"
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"{names[0]} {before.get(names[0])}, now {now.get(names[0])}{more}"
    words = {
        "trained": "other trained weights",
        "start": "another initial model",
        "data": "other training images or texts",
        "inputs": "other prompts or pixel statistics",
        "val": "other validation images",
    }
    current = json.loads(json.dumps(dict(fingerprint)))
    return next((text for key, text in words.items() if stored.get(key) != current[key]), "")


def read_fingerprint(checkpoint: Path) -> dict[str, Any]:
    """Reads the fingerprint of a checkpoint; empty without the file. Raises UserError if the file is broken."""
    path = checkpoint / RUN_FILE
    return read_json(path, RunFingerprintFile, remedy=OTHER_CHECKPOINT).model_dump() if path.is_file() else {}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
