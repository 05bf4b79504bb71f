"""The runs of an ablation: train a row with a seed, test it, keep everything in a folder; several at once."""

import contextlib
import json
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ...data.captions import join_continuations, read_records
from ...evaluation.protocol import evaluate_model
from ...evaluation.report import write_json
from ...model import MllmReIDModel, MllmReIDProcessor
from ...options.arguments import MethodArguments, ModelArguments
from ...options.parser import build_options
from ...text.continuations import target_text
from ...text.instructions import instruction_texts
from ...training.adapters import AdapterArguments
from ...training.arguments import BatchArguments, ReIDTrainingArguments
from ...training.batches import TrainCollator, TrainDataset
from ...training.loading import load_model
from ...training.parameters import freeze_unused_parameters
from ...training.run import hardware, train_reid, versions
from ...training.trainer import ReIDTrainer
from ...utils.errors import UserError
from ...utils.processes import this_process
from ..agreement import branch_agreement, draw_agreement
from .controls import AttributeCollator, add_attribute_head, corrupt_captions, permute_captions
from .plan import FEATURES, TINY, AblationArguments, ControlArguments, Cost, Plan, Run
from .teacher import load_set, one_image_each

# What a run is told, in this order.
GROUPS = (MethodArguments, AdapterArguments, BatchArguments, ControlArguments, ReIDTrainingArguments)
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
    method, adapters, batches, control, training = arguments_of(run, place, folder / "training")
    model, processor = start(place, method, adapters, training.device)
    dataset = training_data(run, place, control)
    trainer, history = train_stages(run, model, processor, dataset, batches, control, training)
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


def training_data(run: Run, place: Place, control: ControlArguments) -> DatasetDict:
    """The training part with its texts, spoilt where the row says so."""
    train = load_set(place.args, run.train_set, place.texts)["train"]
    if control.permute_captions:
        train = permute_captions(train, run.seed)
    if control.caption_noise:
        train = corrupt_captions(train, control.caption_noise, run.seed)
    return DatasetDict(train=train)


def train_stages(
    run: Run,
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    dataset: DatasetDict,
    batches: BatchArguments,
    control: ControlArguments,
    training: ReIDTrainingArguments,
) -> tuple[ReIDTrainer, list[dict[str, Any]]]:
    """Both stages, each with its own schedule; returns the last trainer and the logs, steps counted through."""
    # By what is frozen, not by what is trained: the first stage makes the ID classifier, and freezes it as unused.
    loss_lambda, frozen = model.config.loss_lambda, {p for p in model.parameters() if not p.requires_grad}
    collator, prepare = TrainCollator, None
    if control.attribute_weight:
        collator = AttributeCollator

        def prepare(of: MllmReIDModel) -> None:
            add_attribute_head(of, control.attribute_weight)

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


def folder_of(run: Run, runs: Path) -> Path:
    """A run's folder: the one that is there under its key, whatever it was called then, else a new one's."""
    found = [path for path in runs.glob(f"*-{run.key}") if (path / RESULT).is_file()] if runs.is_dir() else []
    return found[0] if found else runs / run.folder


def run_all(tasks: Sequence[tuple[Run, Place]], runs: Path, *, processes: int) -> None:
    """Runs what has no result yet, each in one of `processes` processes.

    A kill loses the runs that were going on and no other. Raises UserError naming the first run that failed; those
    that were going on beside it are finished first.
    """
    waiting = {run.key: (run, place) for run, place in tasks if not (folder_of(run, runs) / RESULT).is_file()}
    for left in runs.glob(".*.part"):
        # Of a sweep that was killed; its runs are done anew.
        shutil.rmtree(left)
    print(f"{len({run.key for run, _ in tasks})} runs, {len(waiting)} of them to do, {processes} at once", flush=True)
    if not waiting:
        return
    # A new process each: torch's threads and the Trainer's state do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_the_sweep) as pool:
        going = {pool.submit(execute, run, place, folder_of(run, runs)): run for run, place in waiting.values()}
        with tqdm(total=len(going), desc="runs", unit="run", disable=None) as bar:
            for future in as_completed(going):
                run = going[future]
                try:
                    future.result()
                except BrokenProcessPool as error:
                    raise UserError(
                        f"run {run.folder}: its process was killed ({error}), by a lack of memory perhaps: set "
                        "processes lower; the same command goes on with what is left"
                    ) from error
                except Exception as error:
                    pool.shutdown(cancel_futures=True)
                    raise UserError(
                        f"run {run.folder}: {' '.join(str(error).split())[:300]} (its log: {runs / run.folder}.log): "
                        "the same command goes on with what is left"
                    ) from error
                bar.update()


def _end_with_the_sweep() -> None:
    """Ends this process when the sweep's ends, however that was: a run that goes on alone would meet its own repeat."""

    def watch() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# Fields of a row that change what it is told, not what it computes; the oracle's head is nothing beside the tower.
NO_COST = ("permute_captions", "caption_noise", "attribute_weight")


def step_costs(plan: Plan, place: Place) -> dict[str, Cost]:
    """What a step of each row costs, beside one of the row that the others' budget comes from.

    Counted by torch over one batch of P x K images, forward and backward; what is frozen has no backward pass. Rows
    that differ in their texts alone cost the same.
    """
    known: dict[str, Cost] = {}
    costs = {}
    for row, settings in plan.settings.items():
        told = {name: value for name, value in settings.items() if name not in NO_COST}
        key = json.dumps(told, sort_keys=True)
        if key not in known:
            run = plan.first(row)
            known[key] = Cost(*(_count(run, place, stage) if run.stages[stage] else 0.0 for stage in (0, 1)))
        costs[row] = known[key]
    first = float(plan.settings[str(plan.args.flops_of)].get("language_first", 0.0))
    reference = costs[str(plan.args.flops_of)].of_steps(first)
    return {row: replace(cost, reference=reference) for row, cost in costs.items()}


def _count(run: Run, place: Place, stage: int) -> float:
    method, adapters, batches, control, training = arguments_of(run, place, Path(run.folder))
    torch.manual_seed(0)
    model, processor = start(place, method, adapters, this_process().device)
    if stage == 0:
        model.config.loss_lambda = 0.0
    language = model.config.loss_lambda < 1
    samples = TrainDataset(training_data(run, place, control)["train"], processor, batches, seed=0, language=language)
    model.set_num_identities(samples.num_identities)
    freeze_unused_parameters(model)
    model.to(this_process().device).train()
    size = training.identities_per_batch * training.images_per_identity
    collate = TrainCollator(processor, batches, language=language, reid_text=False)
    batch = collate([samples[row % len(samples), 0, row] for row in range(size)])
    with FlopCounterMode(display=False) as counter:
        model(**batch).loss.backward()
    return float(counter.get_total_flops())
