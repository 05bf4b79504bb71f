"""One training run, from a loaded data set to the best checkpoint, its metrics and its record."""

import importlib.metadata
import logging
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from transformers import PreTrainedConfig, TrainingArguments

from ..data.contract import image_sources
from ..data.images import check_images
from ..data.published import published_counts
from ..data.splits import split_query_gallery, split_validation
from ..evaluation.protocol import embed_query_gallery, same_person
from ..evaluation.report import weights_digest, write_json
from ..evaluation.threshold import Threshold, choose_threshold, save_thresholds
from ..model import MllmReIDModel, MllmReIDProcessor
from ..utils.errors import UserError
from ..utils.outputs import only_writer, owner_only
from ..utils.processes import on_main
from .adapters import AdapterArguments
from .arguments import BatchArguments, ReIDTrainingArguments
from .batches import TrainCollator, TrainDataset
from .engines import sharding_of
from .memory import find_batch_size
from .parameters import freeze_unused_parameters
from .resume import checkpoint_to_resume, identities_digest, run_fingerprint
from .stock_settings import try_settings
from .trainer import QueryGallery, ReIDTrainer

logger = logging.getLogger(__name__)


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


@dataclass
class TrainedModel:
    """The trainer after training, its model being the best by val where there is one, and val's parts."""

    trainer: ReIDTrainer
    val: QueryGallery | None


def train_reid(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    dataset: DatasetDict,
    batch_args: BatchArguments,
    args: ReIDTrainingArguments,
    *,
    collator: type[TrainCollator] = TrainCollator,
    prepare: Callable[[MllmReIDModel], None] | None = None,
) -> TrainedModel:
    """Trains on `dataset["train"]`, selects on val, and saves the model with its processor into `args.output_dir`.

    Every image is decoded once before the first step. Never looks at query and gallery. collator: what makes batches.
    prepare: what else is done to the model once it is known what is trained of it, before there is an optimiser.
    Raises UserError for a data set without a training part, broken images, and settings that do not fit the
    data or each other.
    """
    try_settings(args)
    if model.config.distillation_weight and model.config.loss_lambda < 1 and not batch_args.text_branch:
        raise UserError(
            "distillation_weight needs the text branch as its teacher: set text_branch true, or leave it out"
        )
    if "train" not in dataset:
        raise UserError(f"the data set has {', '.join(dataset)}: training needs a train part")
    train, val = dataset["train"], dataset.get("val")
    if val is None and batch_args.val_identities:
        train, val = split_validation(train, val_identities=batch_args.val_identities, seed=args.seed)
    if val is None and args.eval_strategy != "no":
        raise UserError("there is no val part: set val_identities, or eval_strategy to 'no'")
    if val is None and args.eval_on_start:
        raise UserError("eval_on_start: there is no val part: set val_identities, or leave it out")
    parts = None if val is None else QueryGallery(*split_query_gallery(val))
    check_images([source for split in (train, val) if split is not None for source in image_sources(split)])

    config = model.config
    language = config.loss_lambda < 1
    wanted = language or config.reid_text or collator.needs_captions
    samples = TrainDataset(train, processor, batch_args, seed=args.seed, language=wanted)
    config.image_prefix_ids = processor.image_prefix_ids
    names = {name.partition(":")[0] for name in config.trained_on or []}
    config.trained_on = sorted({*(config.trained_on or []), *(set(train["source"]) - names)})
    digest = identities_digest(samples)
    if (config.num_identities, config.identities_digest) != (samples.num_identities, digest):
        if config.num_identities and args.process_index == 0:
            print(f"the ID classifier is made anew: {_why_anew(config, samples.num_identities)}")
        model.set_num_identities(samples.num_identities, digest)
    frozen = freeze_unused_parameters(model)
    if prepare is not None:
        prepare(model)
    half = [name for name, p in model.named_parameters() if p.requires_grad and p.dtype.itemsize < 4]
    if half:
        raise UserError(
            f"{half[0]} is trained in {model.get_parameter(half[0]).dtype}, where small updates are lost: load the "
            "model with dtype float32 and set bf16 for speed"
        )
    if args.process_index == 0:
        print(f"{len(samples):,} training images of {samples.num_identities:,} people; {parameter_counts(model)}")
    batches = collator(processor, batch_args, language=language, reid_text=config.reid_text)
    if args.auto_find_batch_size:
        find_batch_size(args, model, samples, batches)
    logger.info("frozen, as no loss reaches them: %s", ", ".join(frozen) or "none")
    trainer = ReIDTrainer(
        model=model,
        args=args,
        train_dataset=samples,
        eval_dataset=parts,
        data_collator=batches,
        processing_class=processor,
    )
    metadata = trainer.run_fingerprint = run_fingerprint(
        args, batch_args, model, samples, val=val, sharding=sharding_of(trainer)
    )
    alone = args.process_index == 0
    with only_writer(Path(str(args.output_dir)), what="training") if alone else nullcontext(), owner_only():
        checkpoint = on_main(checkpoint_to_resume, args, metadata)
        if checkpoint is not None and args.process_index == 0:
            print(f"goes on from {checkpoint}")
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        # Not `save_model()`, which would push as well: what is measured next belongs into the card.
        trainer.save_model(_internal_call=True)
        trainer.save_state()
        # Without val an empty file: thresholds of an earlier run in this folder were of other weights.
        thresholds = {} if parts is None else thresholds_on_val(trainer, parts)
        if args.process_index == 0:
            save_thresholds(str(args.output_dir), thresholds)
    return TrainedModel(trainer, parts)


def _why_anew(config: PreTrainedConfig, people: int) -> str:
    """Why the ID classifier that a checkpoint brings cannot be used."""
    if config.num_identities != people:
        return f"the checkpoint's has {config.num_identities:,} people, here are {people:,}"
    if config.identities_digest is None:
        return "the checkpoint does not say whom its rows stand for"
    return f"the checkpoint's {people:,} people are others than these"


def thresholds_on_val(trainer: ReIDTrainer, parts: QueryGallery) -> dict[str, Threshold]:
    """For each feature the distance beyond which a search finds nobody, chosen on val; none where val is too small.

    Processes share the images; every one gets the thresholds.
    """
    options = {"batch_size": trainer.args.per_device_eval_batch_size, "progress": False}
    model, processor = trainer.model, trainer.processing_class
    query, gallery = embed_query_gallery(model, processor, *parts, **options)
    rule = same_person(*parts)

    def choose() -> dict[str, Threshold]:
        chosen = {name: choose_threshold(rows, gallery[name], rule) for name, rows in query.items()}
        return {name: threshold for name, threshold in chosen.items() if threshold is not None}

    return on_main(choose)


def parameter_counts(model: MllmReIDModel) -> str:
    """The numbers of all parameters and of the trained ones, in words."""
    every, trained = (
        sum(p.numel() for p in model.parameters() if p.requires_grad or not only) for only in (False, True)
    )
    return f"{every:,} parameters, {trained:,} trained"
