"""The runs of an ablation: train a variant with a seed, test it, and keep all results in a folder; several at once."""

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
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ...data.captions import join_continuations, read_records
from ...data.splits import split_query_gallery, split_validation
from ...evaluation.protocol import evaluate_model
from ...model import MllmReIDModel, MllmReIDProcessor
from ...options.arguments import MethodArguments, ModelArguments
from ...options.parser import build_options
from ...text.continuations import target_text
from ...text.instructions import instruction_texts
from ...training.adapters import AdapterArguments
from ...training.arguments import ReIDTrainingArguments
from ...training.batch_arguments import BatchArguments
from ...training.batches import TrainCollator
from ...training.loading import load_model
from ...training.parameters import matches
from ...training.record import hardware, versions
from ...training.run import train_reid
from ...training.trainer import ReIDTrainer
from ...utils.errors import UserError
from ...utils.outputs import write_json
from ...utils.processes import this_process
from ..agreement import branch_agreement, draw_agreement
from .controls import AttributeCollator, add_attribute_head, corrupt_captions, permute_captions
from .plan import FEATURES, TINY, AblationArguments, ControlArguments, Run
from .teacher import first_images, load_set

# The option groups of a run, in this order.
GROUPS = (MethodArguments, AdapterArguments, BatchArguments, ControlArguments, ReIDTrainingArguments)
RESULT = "result.json"


@dataclass(frozen=True)
class RunInputs:
    """The inputs that the runs of one training set share.

    Args:
        args (`AblationArguments`): The plan.
        base (`str`): Name or folder of the base model.
        texts (`Path`, *optional*): Continuations of the training set.
        test_texts (`Mapping[str, Path]`): Continuations of the test sets, by name.
        speed (`Mapping[str, Any]`): Fields that change the speed and not the results; a run's key leaves them out.
    """

    args: AblationArguments
    base: str
    texts: Path | None
    test_texts: Mapping[str, Path]
    speed: Mapping[str, Any]


def execute(run: Run, inputs: RunInputs, folder: Path) -> None:
    """Trains and tests one run; its folder appears once it is complete. Raises UserError for mistakes in settings."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    log = folder.parent / f"{folder.name}.log"
    try:
        with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            try:
                _run(run, inputs, partial)
            except Exception:
                traceback.print_exc(file=file)
                raise
        log.rename(partial / "log.txt")
        partial.chmod(0o755)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _run(run: Run, inputs: RunInputs, folder: Path) -> None:
    """Trains and tests one run in this process and writes its files."""
    transformers_logging.set_verbosity_error()
    started = time.monotonic()
    torch.set_num_threads(inputs.args.threads)
    torch.manual_seed(run.seed)
    method, adapters, batches, control, training = arguments_of(run, inputs, folder / "training")
    model, processor = load_base(inputs, method, adapters, training.device)
    dataset = training_data(run, inputs, control)
    tests: dict[str, tuple[Dataset, Dataset]]
    if run.val_people:
        train, val = split_validation(dataset["train"], val_identities=run.val_people, seed=run.seed)
        dataset, tests = DatasetDict(train=train), dict.fromkeys(run.test_sets, split_query_gallery(val))
    else:
        sets = {name: load_set(inputs.args, name) for name in run.test_sets}
        tests = {name: (splits["query"], splits["gallery"]) for name, splits in sets.items()}
    # Before the training: an error in the texts must not cost a finished one.
    has_language = model.config.loss_lambda < 1 and batches.target != "split"
    described = images_with_texts(inputs, tests) if has_language else {}
    trainer, history = train_stages(run, model, processor, dataset, batches, control, training)
    report: dict[str, Any] = {
        "row": run.variant,
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
    for name, (query, gallery) in tests.items():
        report["tests"][name] = test(trainer, query, gallery, folder / f"queries-{len(report['tests'])}.npz")
        if name in described:
            path = folder / f"agreement-{len(report['agreement'])}"
            report["agreement"][name] = agree(model, processor, described[name], batches, path)
    write_json(folder / "curves.json", history)
    # The weights are deleted: a plan has hundreds of runs, and the settings suffice to repeat any of them.
    shutil.rmtree(folder / "training")
    write_json(folder / RESULT, {**report, "seconds_in_all": round(time.monotonic() - started, 1)})


def arguments_of(run: Run, inputs: RunInputs, output_dir: Path) -> tuple[Any, ...]:
    """The dataclasses of a run, those of `GROUPS`. Raises UserError for refused values, naming the variant."""
    fixed = {"output_dir": str(output_dir), "seed": run.seed, "max_steps": sum(run.stages), "disable_tqdm": True}
    # Variants are compared at their last step: a selection on val would add its own variance.
    fixed |= {"eval_strategy": "no", "save_strategy": "no"}
    return build_options(GROUPS, {**run.settings, **inputs.speed, **fixed}, f"variant {run.variant!r}")


def load_base(
    inputs: RunInputs, method: MethodArguments, adapters: AdapterArguments, device: torch.device
) -> tuple[MllmReIDModel, MllmReIDProcessor]:
    """Loads the base model with new heads; a quantised model is on the device."""
    fields = method.given()
    if inputs.args.base_model == TINY:
        fields = {"height": 128, "width": 64, **fields}
    return load_model(ModelArguments(inputs.base, dtype=inputs.args.base_dtype), fields, adapters, device)


def training_data(run: Run, inputs: RunInputs, control: ControlArguments) -> DatasetDict:
    """The train split with its texts, corrupted where the variant asks for it."""
    train = load_set(inputs.args, run.train_set, inputs.texts)["train"]
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
    """Trains both stages, each with its own schedule; returns the last trainer and the logs of all steps."""
    # The frozen parameters are noted, not the trained ones: the first stage adds the ID classifier and freezes it.
    loss_lambda, frozen = model.config.loss_lambda, {p for p in model.parameters() if not p.requires_grad}
    collator, rates = TrainCollator, training.learning_rates
    if control.attribute_weight:
        collator = AttributeCollator

    def prepare(trained: MllmReIDModel, *, own_losses: bool) -> None:
        if control.attribute_weight and own_losses:
            add_attribute_head(trained, control.attribute_weight)
        training.learning_rates = rates_in_use(dict(rates or {}), trained)  # type: ignore[arg-type]

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
        ready = partial(prepare, own_losses=stage == 1)
        trainer = train_reid(model, processor, dataset, batches, training, collator=collator, prepare=ready).trainer
        history += [{**entry, "step": entry["step"] + before} for entry in trainer.state.log_history]
    if trainer is None:
        raise UserError(f"variant {run.variant!r}: takes no step: give max_steps of at least 1")
    return trainer, history


def rates_in_use(rates: Mapping[str, float], model: MllmReIDModel) -> dict[str, float]:
    """Returns the learning rates without those of parameters that are frozen here: all variants share them."""
    parameters = dict(model.named_parameters())

    def has(pattern: str, *, trained: bool) -> bool:
        return any(
            matches(pattern, name, "learning_rates") for name, p in parameters.items() if p.requires_grad or not trained
        )

    # A pattern that matches nothing at all stays, for the error of the training.
    return {
        pattern: rate
        for pattern, rate in rates.items()
        if has(pattern, trained=True) or not has(pattern, trained=False)
    }


def test(trainer: ReIDTrainer, query: Dataset, gallery: Dataset, path: Path) -> dict[str, Any]:
    """The metrics of each feature; the per-query values go to the file."""
    metrics = evaluate_model(
        trainer.model,
        trainer.processing_class,
        query,
        gallery,
        num_workers=trainer.args.dataloader_num_workers,
        progress=False,
    )
    arrays: dict[str, np.ndarray] = {"person_ids": np.asarray(query["person_id"][:])}
    for name in FEATURES:
        arrays[f"{name}_ap"] = metrics[name].average_precision
        arrays[f"{name}_first"] = metrics[name].first_match_rank
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return {"queries": path.name, **{name: metrics[name].to_dict() for name in FEATURES}}


def images_with_texts(inputs: RunInputs, tests: Mapping[str, tuple[Dataset, Dataset]]) -> dict[str, Dataset]:
    """The images of each test set on which both branches are compared. Raises UserError for a missing continuation."""
    return {
        name: join_continuations(
            first_images(query, inputs.args.agreement_images), "query", read_records(inputs.test_texts[name])
        )
        for name, (query, _) in tests.items()
        if name in inputs.test_texts
    }


def agree(
    model: MllmReIDModel, processor: MllmReIDProcessor, joined: Dataset, batches: BatchArguments, path: Path
) -> dict[str, Any]:
    """The mean agreement of both branches on people outside the training set, with the variant's kind of target.

    Writes all values to `path`.json, and the examples with the best and the worst agreement to `path`.png.
    """
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
    draw_agreement(path.with_suffix(".png"), joined, agreement, captions)
    report = agreement.to_dict()
    for entry, name in zip(report["rows"], joined["file_name"][:], strict=True):
        entry["file_name"] = name
    write_json(path.with_suffix(".json"), report)
    overall: dict[str, Any] = report["overall"]
    return overall


def read_result(folder: Path) -> dict[str, Any]:
    """The result of a finished run. Raises UserError for a folder that cannot be read."""
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: not a finished run ({error}): remove it, the same command runs it again") from error
    return result


def run_folder(run: Run, runs: Path) -> Path:
    """The finished folder with the run's key, under any name of the variant; without one, the new folder."""
    finished = [path for path in runs.glob(f"*-{run.key}") if (path / RESULT).is_file()] if runs.is_dir() else []
    return finished[0] if finished else runs / run.folder


def run_all(tasks: Sequence[tuple[Run, RunInputs]], runs: Path, *, processes: int) -> None:
    """Executes every run without a result, `processes` of them at once, each in a new process.

    A kill loses only the unfinished runs. Raises UserError naming the first failed run, after the other running ones
    are finished.
    """
    waiting = {run.key: (run, inputs) for run, inputs in tasks if not (run_folder(run, runs) / RESULT).is_file()}
    for unfinished in runs.glob(".*.part"):
        # Of an ablation that was killed.
        shutil.rmtree(unfinished)
    print(f"{len({run.key for run, _ in tasks})} runs, {len(waiting)} of them to do, {processes} at once", flush=True)
    if not waiting:
        return
    # A new process each: torch's threads and the Trainer's state do not survive a fork.
    context = multiprocessing.get_context("spawn")
    queue, running = iter(waiting.values()), dict[Future[None], Run]()
    with (
        ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_the_parent) as pool,
        tqdm(total=len(waiting), desc="runs", unit="run", disable=None) as bar,
    ):
        while True:
            # No more than the processes take, so that after a failure none begins.
            for run, inputs in islice(queue, processes - len(running)):
                running[pool.submit(execute, run, inputs, run_folder(run, runs))] = run
            if not running:
                break
            ended = [(running.pop(future), future.exception()) for future in wait(running, None, FIRST_COMPLETED).done]
            for run, error in ended:
                if error is not None:
                    print(f"run {run.folder} has failed: {len(running)} others are still running", flush=True)
                    raise _failure(run, error, runs) from error
            bar.update(len(ended))


def _failure(run: Run, error: BaseException, runs: Path) -> UserError:
    """The error of a run that has failed."""
    if isinstance(error, BrokenProcessPool):
        return UserError(
            f"run {run.folder}: its process was killed ({error}), perhaps by a lack of memory: set processes lower; "
            "the same command continues with the unfinished runs"
        )
    return UserError(
        f"run {run.folder}: {' '.join(str(error).split())[:300]} (its log: {runs / run.folder}.log): the same command "
        "continues with the unfinished runs"
    )


def _end_with_the_parent() -> None:
    """Ends this process when its parent ends, so that an orphaned run never meets its own repetition."""

    def watch() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
