"""Which run a checkpoint is of, and whether the same command goes on from it."""

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..errors import UserError
from ..model import MllmReIDModel
from ..model.checkpoints import probe
from .arguments import BatchArguments, ReIDTrainingArguments
from .batches import TrainDataset

RUN_FILE = "run_facts.json"
# What changes where results go, what is told, or how fast they come, and no weight.
NEUTRAL = re.compile(
    r"output_dir|resume_from_checkpoint|logging_.*|log_.*|report_to|run_name|project|trackio_.*|hub_.*|push_to_hub|"
    r"disable_tqdm|dataloader_.*|save_(total_limit|on_each_node|only_model)|eval_accumulation_steps|ddp_timeout|"
    r"use_cpu|local_rank|_n_gpu|per_device_eval_batch_size|diagnostics_steps|max_skipped_steps|"
    r"enable_jit_checkpoint|do_.*|debug|include_.*|skip_memory_metrics|.*token.*"
)


def run_facts(
    args: ReIDTrainingArguments,
    batches: BatchArguments,
    model: MllmReIDModel,
    samples: TrainDataset,
    sharding: str | None = None,
) -> dict[str, Any]:
    """What two trainings must share for one to go on from the other's checkpoint: settings, start and data.

    sharding: what spreads the model over the processes, as each engine reads its own checkpoints alone.
    """
    told = json.loads(json.dumps(args.to_public_dict(), default=str))
    settings = {name: value for name, value in told.items() if not NEUTRAL.fullmatch(name)}
    settings |= {name: value for name, value in asdict(batches).items() if name != "texts"}
    config = json.loads(json.dumps(model.config.to_dict(), default=str))
    own = {name: value for name, value in config.items() if name in type(model.config).__annotations__}
    told_by_model = ("mllm_config", "image_prefix_ids", "trained_on", "overlap", "base_licence", "backbone_probe")
    settings |= {name: value for name, value in own.items() if name not in told_by_model}
    trained = [(name, list(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    data = [samples.file_names, samples.person_ids, samples.camera_ids, samples.sources, samples.texts]
    return {
        "settings": {**settings, "processes": args.world_size, "sharding": sharding},
        "start": probe(model.mllm),
        "trained": _digest(trained),
        "data": _digest(data),
    }


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the most steps in `output_dir`; what was not written whole is none."""
    found = {}
    for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = path.name.rpartition("-")[2]
        if number.isdigit() and (path / "trainer_state.json").is_file():
            found[int(number)] = path
    return found[max(found)] if found else None


def checkpoint_to_resume(args: ReIDTrainingArguments, facts: Mapping[str, Any]) -> Path | None:
    """The checkpoint that a training goes on from, or None for the start.

    Where nothing is said, the last one in `output_dir`, which must be of the same run: then the same command, given
    again after a crash, goes on. "true": the last one, whatever its run was told; a folder: that one; "false": none,
    and those that lie in `output_dir` are removed. Raises UserError for what is not there, and for another run's.
    """
    wanted, folder = args.resume_from_checkpoint, Path(str(args.output_dir))
    asked = str(wanted).lower()
    if wanted is not None and asked not in ("true", "false", "none"):
        if not Path(wanted).is_dir():
            raise UserError(f"resume_from_checkpoint {wanted}: no such folder: give a checkpoint-* folder, or true")
        return Path(wanted)
    last = last_checkpoint(folder)
    if asked == "false":
        if args.should_save:
            for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                shutil.rmtree(path)
        return None
    if asked == "true":
        if last is None:
            raise UserError(f"resume_from_checkpoint: no checkpoint in {folder}: leave it out to start anew")
        return last
    if last is None:
        return None
    difference = _difference(last, facts)
    if difference:
        raise UserError(
            f"{last}: is of a run with other settings ({difference}): give another output_dir, or "
            "resume_from_checkpoint true to go on from it all the same, false to remove it and start anew"
        )
    return last


def _difference(checkpoint: Path, facts: Mapping[str, Any]) -> str:
    """What the checkpoint's run was told or given otherwise, in words; empty where nothing is."""
    try:
        then = json.loads((checkpoint / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"it has no readable {RUN_FILE}"
    before, now = then.get("settings", {}), facts["settings"]
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if names:
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return f"{names[0]} {before.get(names[0])}, now {now.get(names[0])}{more}"
    words = {
        "start": "another model to begin with",
        "trained": "other trained weights",
        "data": "other training images or texts",
    }
    return next((said for key, said in words.items() if then.get(key) != json.loads(json.dumps(facts[key]))), "")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
