"""`train`: a model on a data set's training part; the best checkpoint by the validation people is kept."""

import os
import time
from dataclasses import dataclass, field
from typing import Any

from datasets import DatasetDict
from transformers import set_seed

from ..data import load_reid_dataset
from ..data.combine import parse_combination
from ..data.leaks import refuse_overlaps
from ..data.texts import CaptionRecord, read_records
from ..errors import UserError
from ..evaluation.protocol import check_parts
from ..model import MllmReIDModel, MllmReIDProcessor
from ..processes import refuse_lost_processes
from ..text.licences import licence_of, refuse_licences
from ..training import AdapterArguments, BatchArguments, ReIDTrainingArguments, train_reid
from ..training.memory import estimate_memory
from ..training.record import write_record
from .arguments import DataArguments, LicenceArguments, MethodArguments, ModelArguments
from .evaluate import EvaluateArguments, evaluate_and_report
from .loading import load_config, load_model
from .options import parse

# The classifier's size is not known without the data: about that of the benchmarks.
DRY_RUN_IDENTITIES = 1000


@dataclass
class LeakArguments:
    """Which sets the model will be tested on, and what must not be trained on."""

    targets: list[str] = field(
        default_factory=list,
        metadata={"help": "Sets to be tested on, besides those that are given; what overlaps with them is refused."},
    )
    allow_overlap: bool = field(
        default=False, metadata={"help": "Train on test people of a target all the same; the configuration says so."}
    )
    allow_licence: bool = field(
        default=False, metadata={"help": "Train on texts whose writer's licence forbids it for other language models."}
    )


@dataclass
class RunArguments:
    """Whether anything is trained at all."""

    dry_run: bool = field(
        default=False,
        metadata={"help": "Only tell what would be trained and how much memory it takes; needs no weights, no data."},
    )


def main(argv: list[str]) -> None:
    """Trains, saves into `output_dir`, and where the data set has query and gallery evaluates the saved model there."""
    groups = (ModelArguments, MethodArguments, AdapterArguments, DataArguments, BatchArguments, LeakArguments)
    parsed = parse((RunArguments, *groups, LicenceArguments, ReIDTrainingArguments), argv, "train")
    run_args, model_args, method_args, adapter_args, data_args, batch_args, leak_args, *others = parsed
    licence_args, training_args = others
    if run_args.dry_run:
        return dry_run(model_args, method_args, adapter_args, batch_args, training_args)
    refuse_lost_processes(training_args.distributed_state, os.environ)
    dataset = load_reid_dataset(data_args.dataset, texts=batch_args.texts, **data_args.options())
    trained_on, overlap = what_is_trained_on(data_args.dataset, dataset, leak_args)
    # New heads are random: a run that is killed before its first checkpoint starts with the same ones.
    set_seed(training_args.seed)
    model, processor = load_model(model_args, method_args.given(), adapter_args)
    licence = licence_args.licence or model.config.base_licence
    model.config.base_licence = licence or licence_of(model_args.model, revision=model_args.revision)
    provenances: list[dict[str, Any]] = []
    if model.config.loss_lambda < 1 or model.config.reid_text:
        provenances = provenances_of_texts(data_args.captions_file, batch_args.texts)
        refuse_licences(provenances, model.config, allow=leak_args.allow_licence, licence=model.config.base_licence)
    model.config.trained_on = sorted({*(model.config.trained_on or []), *trained_on})
    model.config.overlap = sorted({*(model.config.overlap or []), *overlap}) or None
    started = time.monotonic()
    trained = train_reid(model, processor, dataset, batch_args, training_args)
    seconds = time.monotonic() - started
    if training_args.process_index == 0:
        folder = str(training_args.output_dir)
        write_record(
            folder,
            dataset,
            base_model=model_args.model,
            adapters=adapter_args,
            batches=batch_args,
            texts=provenances,
            seconds=seconds,
        )
        print(f"checkpoint: {folder}")
    evaluate_where_possible(model, processor, dataset, training_args, data_args.dataset)
    if training_args.push_to_hub:
        # Last, so that the card has what was measured.
        address = trained.trainer.push_to_hub()
        if training_args.process_index == 0:
            print(f"pushed: {address}")


def dry_run(
    model_args: ModelArguments,
    method_args: MethodArguments,
    adapter_args: AdapterArguments,
    batch_args: BatchArguments,
    training_args: ReIDTrainingArguments,
) -> None:
    """Prints trained parameters and bytes of one step, from the model's configuration file alone."""
    config = load_config(model_args, {"num_identities": DRY_RUN_IDENTITIES, **method_args.given()})
    memory = estimate_memory(config, adapter_args, training_args, batch_args, dtype=model_args.torch_dtype)
    print(memory.format())
    print(
        f"{training_args.identities_per_batch} x {training_args.images_per_identity} images of {config.height} x "
        f"{config.width}, {config.num_image_tokens} image tokens; ID classifier for {DRY_RUN_IDENTITIES:,} people. "
        "Besides these the device needs its own context, and room for what is not kept."
    )


def evaluate_where_possible(
    model: MllmReIDModel,
    processor: MllmReIDProcessor,
    dataset: DatasetDict,
    training_args: ReIDTrainingArguments,
    name: str,
) -> None:
    """Evaluates where the data set has a query and a gallery part that fit; says so where they do not.

    Processes share the images.
    """
    if "query" not in dataset or "gallery" not in dataset:
        return
    try:
        check_parts(dataset["query"], dataset["gallery"])
    except UserError as reason:
        # The training itself was no mistake.
        if training_args.process_index == 0:
            print(f"not evaluated: {reason}")
        return
    options: dict[str, Any] = {"batch_size": training_args.per_device_eval_batch_size}
    facts = {"model": str(training_args.output_dir), "dataset": name}
    evaluate_and_report(model, processor, dataset, EvaluateArguments(str(training_args.output_dir)), facts, **options)


def what_is_trained_on(name: str, dataset: DatasetDict, leak_args: LeakArguments) -> tuple[list[str], list[str]]:
    """The names of the sets in the training part, ":all" behind those whose test people are in it, and the overlaps.

    Raises UserError for overlaps that are not allowed.
    """
    combination = parse_combination(name)
    sources = sorted(set(dataset["train"]["source"])) if "train" in dataset else []
    trained_on = [f"{source}:all" if combination and combination.all_parts else source for source in sources]
    targets = {*leak_args.targets, *(combination.targets if combination else ())}
    if "query" in dataset:
        targets |= set(dataset["query"]["source"])
    return trained_on, refuse_overlaps(trained_on, targets, allow=leak_args.allow_overlap)


def provenances_of_texts(captions_file: str | None, texts: str | None) -> list[dict[str, Any]]:
    """How generated captions and continuations were written; nothing where they are not generated, or not there."""
    found: list[dict[str, Any]] = []
    if captions_file and captions_file.endswith(".jsonl"):
        found += [record.provenance for record in read_records(captions_file, CaptionRecord)]
    if texts:
        found += [record.provenance for record in read_records(texts)]
    return found
