"""Which run a checkpoint belongs to, and whether the same command continues it."""

import hashlib
import json
import os
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

from ..data.images import EmbeddedImage, ImageSource
from ..model import MllmReIDModel, MllmReIDProcessor
from ..model.adapters import adapter_settings
from ..model.backbone_loading import weights_fingerprint
from ..text.instructions import instruction_texts
from ..utils.errors import UserError
from ..utils.formats import ResumedStateFile, RunFingerprintFile
from ..utils.json_files import read_json
from .arguments import BatchArguments, ReIDTrainingArguments
from .batches import TrainDataset
from .stock_settings import setting_errors


def identities_digest(samples: TrainDataset) -> str:
    """A digest of the training people in the order of their labels; it holds no name that could be read back.

    Of each person: the data set, the name or number, and the bytes of one image, the first by file name. Names alone
    are not enough, as people are numbered from 1 in many data sets. The order of the rows does not matter.
    """
    first: dict[int, int] = {}
    for row, label in enumerate(samples.labels):
        if label not in first or samples.file_names[row] < samples.file_names[first[label]]:
            first[label] = row
    digest = hashlib.sha256()
    for label in sorted(first):
        row = first[label]
        for part in (samples.sources[row], samples.person_names[row]):
            digest.update(part.encode(errors="surrogateescape") + b"\0")
        digest.update(hashlib.sha256(_encoded(samples.images[row])).digest())
    return digest.hexdigest()


def _encoded(source: ImageSource) -> bytes:
    if isinstance(source, EmbeddedImage):
        return source.read()
    with open(os.fspath(source), "rb") as file:
        return file.read()


RUN_FILE = "run_facts.json"
ANOTHER = "give another checkpoint as resume_from_checkpoint, or false to start anew"
# What changes where results go, what is told, or how fast they come, and no weight.
NEUTRAL = re.compile(
    r"output_dir|resume_from_checkpoint|logging_.*|log_.*|report_to|run_name|project|trackio_.*|hub_.*|push_to_hub|"
    r"disable_tqdm|dataloader_.*|save_(total_limit|on_each_node|only_model)|eval_accumulation_steps|ddp_timeout|"
    r"use_cpu|local_rank|_n_gpu|per_device_eval_batch_size|diagnostics_steps|max_skipped_steps|"
    r"enable_jit_checkpoint|do_.*|debug|include_.*|skip_memory_metrics|.*token.*"
)
# Fields of the configuration that other facts stand for, or that only record where the model comes from.
RECORDS = frozenset(
    {
        "mllm_config",
        "image_prefix_ids",
        "trained_on",
        "overlap",
        "base_licence",
        "backbone_fingerprint",
        "identities_digest",
    }
)
# What an image processor does to the numbers of a crop that has its size.
PIXELS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")


def run_fingerprint(
    args: ReIDTrainingArguments,
    batches: BatchArguments,
    model: MllmReIDModel,
    samples: TrainDataset,
    *,
    val: Dataset | None = None,
    sharding: str | None = None,
) -> dict[str, Any]:
    """What two trainings must share for one to go on from the other's checkpoint: settings, start and data.

    val: what checkpoints are selected on. sharding: what spreads the model over the processes, as each engine reads its
    own checkpoints alone.
    """
    trained = [(name, list(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    data = [samples.file_names, samples.person_ids, samples.camera_ids, samples.sources, samples.texts]
    columns = ("file_name", "person_id", "camera_id", "source")
    return {
        "settings": {**_settings(args, batches, model), "sharding": sharding},
        "start": _start(model.mllm),
        "trained": _digest(trained),
        "data": _digest(data),
        "inputs": _inputs(samples.processor, batches),
        "val": None if val is None else _digest([val[name][:] for name in columns]),
        "identities": model.config.identities_digest,
    }


def _settings(args: ReIDTrainingArguments, batches: BatchArguments, model: MllmReIDModel) -> dict[str, Any]:
    """Every setting that changes a weight, by name."""
    told = json.loads(json.dumps(args.to_public_dict(), default=str))
    settings = {name: value for name, value in told.items() if not NEUTRAL.fullmatch(name)}
    # The first pattern that matches counts, so that their order does.
    settings["learning_rates"] = [list(pair) for pair in settings["learning_rates"].items()]
    settings |= {name: value for name, value in asdict(batches).items() if name != "texts"}
    config = json.loads(json.dumps(model.config.to_dict(), default=str))
    own = type(model.config).__annotations__
    settings |= {name: value for name, value in config.items() if name in own and name not in RECORDS}
    lora = adapter_settings(model.mllm) or {}
    settings |= {name: lora.get(name) for name in ("lora_alpha", "lora_dropout")}
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()})
    return {**settings, "dtypes": dtypes, "processes": args.world_size}


def _inputs(processor: MllmReIDProcessor, batches: BatchArguments) -> str:
    """A digest of what crops and instructions become on their way into the model."""
    pixels = [getattr(processor.image_processor, name, None) for name in PIXELS]
    return _digest([pixels, [processor.image_prompt_ids(text) for text in instruction_texts(batches.instruction)]])


def _start(mllm: Any) -> list[Any]:
    """What tells the multimodal LLM that a training begins with from another one: its settings and some weights."""
    numbers = []
    for name, parameter in mllm.named_parameters():
        # What a new LoRA draws at random is no mark of the model; an engine that shares weights out leaves empty ones.
        if parameter.is_floating_point() and parameter.numel() and ".lora_A." not in name:
            flat = parameter.detach().flatten()
            at = torch.linspace(0, flat.numel() - 1, 4, dtype=torch.float64).round().long()
            numbers += [f"{value:.6g}" for value in flat[at.to(flat.device)].float().tolist()]
    return [*weights_fingerprint(mllm), _digest([_without_origin(mllm.config.to_dict()), numbers])]


def _without_origin(config: Any) -> Any:
    """A configuration without where it came from, what wrote it, what saving adds, and a cache no training uses."""
    if not isinstance(config, dict):
        return str(config)
    added = {"transformers_version", "architectures", "dtype", "use_cache"}
    return {
        name: _without_origin(value) for name, value in config.items() if str(name)[:1] != "_" and name not in added
    }


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps in `output_dir`; what was not written whole is none."""
    found = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if number.isdigit() and (path / "trainer_state.json").is_file():
            found[int(number)] = path
    return found[max(found)] if found else None


def named_checkpoint(args: ReIDTrainingArguments) -> Path | None:
    """The folder that `resume_from_checkpoint` names; None where it is left out, or true or false."""
    wanted = args.resume_from_checkpoint
    return None if wanted is None or str(wanted).lower() in ("true", "false", "none") else Path(wanted)


def refuse_absent_checkpoint(args: ReIDTrainingArguments) -> None:
    """Raises UserError where `resume_from_checkpoint` names what is no checkpoint of a training."""
    named = named_checkpoint(args)
    if named is None:
        return
    if not named.is_dir():
        raise UserError(f"resume_from_checkpoint {named}: no such folder: give a checkpoint-* folder, or true")
    if not (named / "trainer_state.json").is_file():
        raise UserError(
            f"resume_from_checkpoint {named}: no checkpoint of a training, as it has no trainer_state.json: give a "
            "checkpoint-* folder; a model to train on from is given as model"
        )


def checkpoint_to_resume(args: ReIDTrainingArguments, metadata: Mapping[str, Any]) -> Path | None:
    """`_chosen_checkpoint`, whose state is readable. Raises UserError as that does, and for a broken state."""
    checkpoint = _chosen_checkpoint(args, metadata)
    if checkpoint is not None:
        path = checkpoint / "trainer_state.json"
        read_json(path, ResumedStateFile, remedy=ANOTHER)
        with setting_errors(str(path), ANOTHER):
            TrainerState.load_from_json(str(path))
    return checkpoint


def _chosen_checkpoint(args: ReIDTrainingArguments, metadata: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a training goes on from, or None for the start.

    Where nothing is said, the last one in `output_dir`, which must be of the same run: then the same command, given
    again after a crash, goes on. "true": the last one, whatever its run was told; a folder: that one; "false": none,
    and those that lie in `output_dir` are removed. Raises UserError for what is not there, and for another run's.
    """
    refuse_absent_checkpoint(args)
    folder, asked = Path(str(args.output_dir)), str(args.resume_from_checkpoint).lower()
    named = named_checkpoint(args)
    if named is not None:
        _refuse_other_people(named, metadata)
        return named
    last = last_checkpoint(folder)
    if asked == "false":
        if args.should_save:
            for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                shutil.rmtree(path)
        return None
    if asked == "true":
        if last is None:
            raise UserError(f"resume_from_checkpoint: no checkpoint in {folder}: leave it out to start anew")
        _refuse_other_people(last, metadata)
        return last
    if last is None:
        return None
    difference = _difference(last, metadata)
    if difference:
        raise UserError(
            f"{last}: is of a run with other settings ({difference}): give another output_dir, or "
            "resume_from_checkpoint true to go on from it all the same, false to remove it and start anew"
        )
    return last


def _refuse_other_people(checkpoint: Path, metadata: Mapping[str, Any]) -> None:
    """Raises UserError where the rows of the checkpoint's ID classifier stand for other people than are trained on."""
    then = read_fingerprint(checkpoint).get("identities")
    if then is not None and then != metadata["identities"]:
        raise UserError(
            f"resume_from_checkpoint {checkpoint}: was trained on other people, and its ID classifier is theirs: give "
            "it as model instead, which makes a new classifier"
        )


def _difference(checkpoint: Path, metadata: Mapping[str, Any]) -> str:
    """What the checkpoint's run was told or given otherwise, in words; empty where nothing is."""
    then = read_fingerprint(checkpoint)
    if not then:
        return f"it has no {RUN_FILE}"
    before, now = then["settings"], metadata["settings"]
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"{names[0]} {before.get(names[0])}, now {now.get(names[0])}{more}"
    words = {
        "trained": "other trained weights",
        "start": "another model to begin with",
        "data": "other training images or texts",
        "inputs": "other prompts or pixel statistics",
        "val": "other validation images",
        "identities": "other people to train on",
    }
    return next((said for key, said in words.items() if then.get(key) != json.loads(json.dumps(metadata[key]))), "")


def read_fingerprint(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says of its run, by field; empty without the file. Raises UserError for a broken one."""
    path = checkpoint / RUN_FILE
    return read_json(path, RunFingerprintFile, remedy=ANOTHER).model_dump() if path.is_file() else {}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
