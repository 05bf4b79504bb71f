"""`train`: trains a model on a data set; the checkpoint with the best metric on the validation people is kept."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from huggingface_hub import get_token
from huggingface_hub.utils import validate_repo_id

from ..data.captions import provenances_of_texts
from ..data.leakage import training_sources
from ..data.licences import refuse_licences
from ..data.load import load_reid_dataset
from ..data.readers import READERS
from ..evaluation.protocol import check_query_gallery
from ..evaluation.run import EvaluateArguments, evaluate_and_report
from ..model import ImageEncoder, ImageEncoderProcessor, MllmReIDConfig, MllmReIDModel
from ..options.arguments import MethodArguments, ModelArguments
from ..options.data_arguments import DataArguments, LeakArguments, LicenceArguments
from ..options.parser import build_options, read_options
from ..training.adapters import AdapterArguments
from ..training.arguments import ReIDTrainingArguments
from ..training.batch_arguments import BatchArguments
from ..training.clock import training_seconds
from ..training.loading import load_config, resolve_adapters
from ..training.memory import estimate_memory, run_without_weights
from ..training.model_kinds import loading_errors
from ..training.progress import LOG_FILE, is_training_log
from ..training.record import describe_devices, write_record
from ..training.resume import last_checkpoint, refuse_absent_checkpoint
from ..training.run import train_reid
from ..training.setting_errors import setting_errors
from ..training.start import MODEL_OPTIONS, load_for_training
from ..training.stock_settings import try_settings
from ..utils.errors import UserError
from ..utils.json_files import read_json
from ..utils.outputs import check_output
from ..utils.processes import refuse_lost_processes
from ..utils.shipped import find_deepspeed_file

# The size of the ID classifier depends on the data: this is about the size for the public benchmarks.
DRY_RUN_IDENTITIES = 1000


@dataclass
class RunArguments:
    """A dry run."""

    dry_run: bool = field(
        default=False,
        metadata={"help": "Only print the trained parameters and the memory of a step; needs no weights and no data."},
    )


def main(argv: list[str]) -> None:
    """Trains and saves into `output_dir`; evaluates the saved model if the data set has query and gallery splits."""
    find_deepspeed_file()
    groups = (RunArguments, ModelArguments, MethodArguments, DataArguments, BatchArguments, LeakArguments)
    # In the order of `--help`.
    shown = (ModelArguments, DataArguments, MethodArguments, BatchArguments, AdapterArguments, ReIDTrainingArguments)
    given = read_options((*shown, RunArguments, LeakArguments, LicenceArguments), argv, "train")
    run_args, model_args, method_args, data_args, batch_args, leak_args = build_options(groups, given, "train")
    (licence_args,) = build_options((LicenceArguments,), given, "train")
    if run_args.dry_run and not torch.cuda.is_available():
        # Memory on a GPU is computed without one.
        given = {**given, "use_cpu": True, "tf32": None}
    (training_args,) = build_options((ReIDTrainingArguments,), given, "train")
    adapter_args = resolve_adapters(model_args, given)
    if run_args.dry_run:
        return dry_run(model_args, method_args, adapter_args, batch_args, training_args)
    data_args.refuse_inside(str(training_args.output_dir))
    folders = [data_args.data_dir, *(data_args.data_dirs or {}).values()]
    folders += [] if data_args.dataset in READERS else [data_args.dataset]
    check_start(training_args, model=model_args.model, data=[str(folder) for folder in folders if folder])
    refuse_mixed_formats(model_args, training_args)
    refuse_lost_processes(training_args.distributed_state, os.environ)
    notes: list[str] = []
    dataset = load_reid_dataset(data_args.dataset, texts=batch_args.texts, notes=notes, **data_args.options())
    if training_args.process_index == 0:
        print("".join(f"{note}\n" for note in notes), end="")
    trained_on, overlap = training_sources(
        data_args.dataset, dataset, targets=leak_args.targets, allow_overlap=leak_args.allow_overlap
    )
    options = {name: value for name, value in given.items() if name in MODEL_OPTIONS}
    model, processor = load_for_training(**options, seed=training_args.seed, device=training_args.device)
    model.config.base_licence = licence_args.licence or model.config.base_licence
    provenances: list[dict[str, Any]] = []
    if model.config.loss_lambda < 1 or model.config.reid_text:
        provenances = provenances_of_texts(data_args.captions_file, batch_args.texts)
        refuse_licences(provenances, model.config, allow=leak_args.allow_licence, licence=model.config.base_licence)
    model.config.trained_on = sorted({*(model.config.trained_on or []), *trained_on})
    model.config.overlap = sorted({*(model.config.overlap or []), *overlap}) or None
    trained = train_reid(model, processor, dataset, batch_args, training_args)
    if training_args.process_index == 0:
        folder = str(training_args.output_dir)
        write_record(
            folder,
            dataset,
            base_model=model_args.model_name,
            adapters=adapter_args,
            batches=batch_args,
            texts=provenances,
            language=isinstance(model, MllmReIDModel),
            seconds=training_seconds(trained.trainer),
            devices=describe_devices(training_args),
        )
        print(f"checkpoint: {folder}")
    evaluate_if_possible(model, processor, dataset, training_args, data_args.dataset)
    if training_args.push_to_hub:
        # Last, so that the card has the measured metrics.
        address = trained.trainer.push_to_hub()
        if training_args.process_index == 0:
            print(f"pushed: {address}")


def check_start(args: ReIDTrainingArguments, *, model: str, data: Sequence[str]) -> None:
    """Checks the settings, the output folder and the Hub account before the model is loaded.

    model, data: folders that are read; the training must not write into them. Raises UserError.
    """
    try_settings(args)
    if args.fp16 and args.device.type == "cpu":
        raise UserError("fp16: needs a GPU: set bf16, or leave it out")
    check_output_dir(Path(str(args.output_dir)), model, data)
    refuse_absent_checkpoint(args)
    if args.push_to_hub and not (args.hub_token or get_token()):
        raise UserError("push_to_hub: no token of the Hub is known: run hf auth login, or set HF_TOKEN")
    if args.push_to_hub and args.hub_model_id is not None:
        with setting_errors("hub_model_id"):
            validate_repo_id(args.hub_model_id)


def refuse_mixed_formats(model_args: ModelArguments, args: ReIDTrainingArguments) -> None:
    """Raises UserError for weights in one 16-bit format and training in the other: autocast cannot mix them."""
    for name, dtype, other in (("bf16", torch.float16, "bfloat16"), ("fp16", torch.bfloat16, "float16")):
        if getattr(args, name) and model_args.torch_dtype == dtype:
            raise UserError(f"{name}: the weights are in {model_args.dtype}: set dtype to {other} or float32")


def check_output_dir(folder: Path, model: str, data: Sequence[str]) -> None:
    """Raises UserError if the training would replace another model, foreign reports, or its own inputs.

    The folder may exist if an earlier run is continued. A new folder must not be inside a data folder, where its files
    would be read as data the next time.
    """
    for source in (model, *data):
        if os.path.isdir(source) and folder.is_dir() and os.path.samefile(source, folder):
            raise UserError(f"output_dir {folder}: is also an input: give another folder")
    for source in data:
        within = os.path.isdir(source) and folder.resolve().is_relative_to(Path(source).resolve())
        if within and not (is_own_config(folder / "config.json") or last_checkpoint(folder)):
            raise UserError(f"output_dir {folder}: is inside {source}, an input: give a folder outside of it")
    check_output(folder / "config.json", ours=is_own_config)
    foreign = sorted(folder.glob("*.safetensors")) if not (folder / "config.json").exists() else []
    if foreign and not last_checkpoint(folder):
        raise UserError(f"output_dir {folder}: holds {foreign[0].name}, which no training wrote: give another folder")
    for report in ("metrics.json", "sheet.png", "run.json", "threshold.json"):
        check_output(folder / report)
    check_output(folder / LOG_FILE, ours=is_training_log)


def is_own_config(path: Path) -> bool:
    """Returns whether a config.json belongs to a model of this package."""
    try:
        return str(read_json(path, dict[str, Any]).get("model_type")).startswith(MllmReIDConfig.model_type)
    except UserError:
        return False


def dry_run(
    model_args: ModelArguments,
    method_args: MethodArguments,
    adapter_args: AdapterArguments,
    batch_args: BatchArguments,
    training_args: ReIDTrainingArguments,
) -> None:
    """Prints the trained parameters and the memory of one step, from the configuration of the model alone."""
    config = load_config(model_args, {"num_identities": DRY_RUN_IDENTITIES, **method_args.given()})
    # Sizes that do not fit together show only here, where no weights are loaded.
    with loading_errors(model_args.model, remedy="its config.json is not that of a whole model: get it again"):
        run_without_weights(config)
    memory = estimate_memory(config, adapter_args, training_args, batch_args, dtype=model_args.torch_dtype)
    print(memory.format())
    unit = "image tokens" if isinstance(config, MllmReIDConfig) else "patches"
    print(
        f"{training_args.batch_in_words} images of {config.height} x "
        f"{config.width}, {config.num_image_tokens} {unit}; ID classifier for {DRY_RUN_IDENTITIES:,} people. "
        "The device also needs memory for its own context and for temporary results."
    )


def evaluate_if_possible(
    model: ImageEncoder,
    processor: ImageEncoderProcessor,
    dataset: DatasetDict,
    training_args: ReIDTrainingArguments,
    name: str,
) -> None:
    """Evaluates the model if the data set has query and gallery splits; prints why if it cannot.

    Batches of pairs train no feature of people, so there is nothing to measure.
    """
    if "query" not in dataset or "gallery" not in dataset or training_args.pairs_per_batch:
        return
    try:
        check_query_gallery(dataset["query"], dataset["gallery"])
    except UserError as reason:
        # The training itself succeeded.
        if training_args.process_index == 0:
            print(f"not evaluated: {reason}")
        return
    options: dict[str, Any] = {"batch_size": training_args.per_device_eval_batch_size}
    metadata = {"model": str(training_args.output_dir), "dataset": name}
    evaluate_and_report(
        model, processor, dataset, EvaluateArguments(str(training_args.output_dir)), metadata, **options
    )
