"""One run of the ablation: train a row with a seed, test it, and leave a folder that tells all of it."""

import contextlib
import json
import shutil
import tempfile
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers.utils import logging as transformers_logging

from ...data.texts import join_continuations, read_records
from ...errors import UserError
from ...evaluation.agreement import branch_agreement
from ...evaluation.agreement_sheet import draw_agreement
from ...evaluation.protocol import evaluate_model
from ...evaluation.report import write_json
from ...model import MllmReIDModel, MllmReIDProcessor
from ...processes import this_process
from ...text import instruction_texts, target_text
from ...training import AdapterArguments, BatchArguments, ReIDTrainer, ReIDTrainingArguments, train_reid
from ...training.batches import TrainCollator
from ...training.record import hardware, versions
from ..arguments import MethodArguments, ModelArguments
from ..loading import load_model
from ..options import build_options
from .arguments import FEATURES, TINY, AblationArguments, TreatmentArguments
from .base import load_set, one_image_each
from .oracle import AttributeCollator, add_attribute_head
from .plan import Run
from .treatments import permute_captions, spoil_captions

# What a run is told, in this order.
GROUPS = (MethodArguments, AdapterArguments, BatchArguments, TreatmentArguments, ReIDTrainingArguments)
RESULT = "result.json"


@dataclass(frozen=True)
class Place:
    """Where a run finds what it begins with: the base, the texts of the training set and of the test sets' captions.

    speed: fields that rule how fast the results come, not what they are: no part of a run's key.
    """

    args: AblationArguments
    base: str
    texts: Path | None
    test_texts: Mapping[str, Path]
    speed: Mapping[str, Any]


def execute(run: Run, place: Place, folder: Path) -> None:
    """Trains and tests; the folder appears whole, by its name. Raises UserError for what the user can mend."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    log = folder.parent / f"{folder.name}.log"
    try:
        with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                _run(run, place, aside)
            except Exception:
                traceback.print_exc(file=file)
                raise
        log.rename(aside / "log.txt")
        aside.chmod(0o755)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _run(run: Run, place: Place, folder: Path) -> None:
    transformers_logging.set_verbosity_error()
    started = time.monotonic()
    torch.set_num_threads(place.args.threads)
    torch.manual_seed(run.seed)
    method, adapters, batches, treatment, training = arguments_of(run, place, folder / "training")
    model, processor = start(place, method, adapters, training.device)
    dataset = training_data(run, place, treatment)
    trainer, history = train_stages(run, model, processor, dataset, batches, treatment, training)
    report: dict[str, Any] = {
        "row": run.row,
        "train_set": run.train_set,
        "seed": run.seed,
        "stages": run.stages,
        "settings": dict(run.settings),
        "base": run.base,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "tests": {},
        "agreement": {},
        "seconds": round(time.monotonic() - started, 1),
        "hardware": hardware(this_process().device, this_process().num_processes),
        "versions": versions(),
    }
    for name in run.test_sets:
        dataset = load_set(place.args, name)
        query, gallery = dataset["query"], dataset["gallery"]
        report["tests"][name] = test(trainer, query, gallery, folder / f"queries-{len(report['tests'])}.npz")
        if name in place.test_texts and model.config.loss_lambda < 1 and batches.target != "split":
            shown = one_image_each(query, place.args.agreement_images)
            aside = folder / f"agreement-{len(report['agreement'])}"
            report["agreement"][name] = agree(model, processor, shown, place.test_texts[name], batches, aside)
    write_json(folder / "curves.json", history)
    # The weights are not kept: a plan has hundreds of runs, and any of them is trained again by its settings.
    shutil.rmtree(folder / "training")
    write_json(folder / RESULT, {**report, "seconds_in_all": round(time.monotonic() - started, 1)})


def arguments_of(run: Run, place: Place, output_dir: Path) -> tuple[Any, ...]:
    """The dataclasses of a run, those of `GROUPS`. Raises UserError for what they refuse, naming the row."""
    fixed = {"output_dir": str(output_dir), "seed": run.seed, "max_steps": sum(run.stages), "disable_tqdm": True}
    # Rows are compared at their last step: a selection on val would add its own chance.
    fixed |= {"eval_strategy": "no", "save_strategy": "no"}
    return build_options(GROUPS, {**run.settings, **place.speed, **fixed}, f"row {run.row!r}")


def start(
    place: Place, method: MethodArguments, adapters: AdapterArguments, device: torch.device
) -> tuple[MllmReIDModel, MllmReIDProcessor]:
    """The base with new heads, what is quantised of it on the device."""
    fields = method.given()
    if place.args.base_model == TINY:
        fields = {"height": 128, "width": 64, **fields}
    return load_model(ModelArguments(place.base, dtype=place.args.base_dtype), fields, adapters, device)


def training_data(run: Run, place: Place, treatment: TreatmentArguments) -> DatasetDict:
    """The training part with its texts, spoilt where the row says so."""
    train = load_set(place.args, run.train_set, place.texts)["train"]
    if treatment.permute_captions:
        train = permute_captions(train, run.seed)
    if treatment.caption_noise:
        train = spoil_captions(train, treatment.caption_noise, run.seed)
    return DatasetDict(train=train)


def train_stages(
    run: Run,
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    dataset: DatasetDict,
    batches: BatchArguments,
    treatment: TreatmentArguments,
    training: ReIDTrainingArguments,
) -> tuple[ReIDTrainer, list[dict[str, Any]]]:
    """Both stages, each with its own schedule; returns the last trainer and the logs, steps counted through."""
    # By what is frozen, not by what is trained: the first stage makes the ID classifier, and freezes it as unused.
    loss_lambda, frozen = model.config.loss_lambda, {p for p in model.parameters() if not p.requires_grad}
    collator, prepare = TrainCollator, None
    if treatment.attribute_weight:
        collator = AttributeCollator

        def prepare(of: MllmReIDModel) -> None:
            add_attribute_head(of, treatment.attribute_weight)

    history: list[dict[str, Any]] = []
    trainer: ReIDTrainer | None = None
    for stage, steps in enumerate(run.stages):
        if not steps:
            continue
        model.config.loss_lambda = 0.0 if stage == 0 else loss_lambda
        for parameter in model.parameters():
            parameter.requires_grad_(parameter not in frozen)
        training.max_steps = steps
        before = history[-1]["step"] if history else 0
        trainer = train_reid(
            model, processor, dataset, batches, training, collator=collator, prepare=prepare if stage else None
        ).trainer
        history += [{**entry, "step": entry["step"] + before} for entry in trainer.state.log_history]
    if trainer is None:
        raise UserError(f"row {run.row!r}: takes no step: give max_steps of at least 1")
    return trainer, history


def test(trainer: ReIDTrainer, query: Dataset, gallery: Dataset, path: Path) -> dict[str, Any]:
    """The metrics of each feature; the queries' own values go to the file."""
    rows = evaluate_model(
        trainer.model,
        trainer.processing_class,
        query,
        gallery,
        num_workers=trainer.args.dataloader_num_workers,
        progress=False,
    )
    arrays: dict[str, np.ndarray] = {"person_ids": np.asarray(query["person_id"][:])}
    for name in FEATURES:
        arrays[f"{name}_ap"] = rows[name].average_precision
        arrays[f"{name}_first"] = rows[name].first_match_rank
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return {"queries": path.name, **{name: rows[name].to_dict() for name in FEATURES}}


def agree(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    rows: Dataset,
    texts: Path,
    batches: BatchArguments,
    aside: Path,
) -> dict[str, Any]:
    """The means of both branches' agreement on people never seen, by the row's own kind of target.

    All of it goes to `aside`.json, and to `aside`.png the examples that agree best and worst.
    """
    joined = join_continuations(rows, "query", read_records(texts))
    columns = (joined[name][:] for name in ("caption", "continuation"))
    targets = [
        target_text(captions[0], continuations[0], batches.target)[1]
        for captions, continuations in zip(*columns, strict=True)
    ]
    instruction = instruction_texts(batches.instruction)[0]
    agreement = branch_agreement(
        model, processor, joined, targets, instruction=instruction, max_target_tokens=batches.max_target_tokens
    )
    captions = [captions[0] for captions in joined["caption"][:]]
    draw_agreement(aside.with_suffix(".png"), joined, agreement, captions)
    report = agreement.to_dict()
    for entry, name in zip(report["rows"], joined["file_name"][:], strict=True):
        entry["file_name"] = name
    write_json(aside.with_suffix(".json"), report)
    return report["overall"]


def read_result(folder: Path) -> dict[str, Any]:
    """What a finished run left. Raises UserError for a folder that cannot be read."""
    try:
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a finished run ({error}): remove it, the same command runs it again") from error
