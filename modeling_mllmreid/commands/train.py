"""`train`: a model on a data set's training part; the best checkpoint by the validation people is kept."""

from dataclasses import dataclass, field
from typing import Any

from datasets import DatasetDict

from ..data import load_reid_dataset
from ..data.combine import parse_combination
from ..data.leaks import refuse_overlaps
from ..data.texts import CaptionRecord, read_records
from ..errors import UserError
from ..evaluation.protocol import check_parts
from ..text.licences import refuse_licences
from ..training import BatchArguments, ReIDTrainingArguments, train_reid
from .arguments import DataArguments, MethodArguments, ModelArguments
from .evaluate import EvaluateArguments, evaluate_and_report
from .loading import load_model
from .options import parse


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


def main(argv: list[str]) -> None:
    """Trains, saves into `output_dir`, and where the data set has query and gallery evaluates the saved model there."""
    groups = (ModelArguments, MethodArguments, DataArguments, BatchArguments, LeakArguments, ReIDTrainingArguments)
    model_args, method_args, data_args, batch_args, leak_args, training_args = parse(groups, argv, "train")
    dataset = load_reid_dataset(data_args.dataset, texts=batch_args.texts, **data_args.options())
    trained_on, overlap = what_is_trained_on(data_args.dataset, dataset, leak_args)
    model, processor = load_model(model_args, method_args.given())
    if model.config.loss_lambda < 1 or model.config.reid_text:
        provenances = provenances_of_texts(data_args.captions_file, batch_args.texts)
        refuse_licences(provenances, model.config, allow=leak_args.allow_licence)
    model.config.trained_on = sorted({*(model.config.trained_on or []), *trained_on})
    model.config.overlap = sorted({*(model.config.overlap or []), *overlap}) or None
    train_reid(model, processor, dataset, batch_args, training_args)
    if training_args.process_index != 0:
        return
    print(f"checkpoint: {training_args.output_dir}")
    if "query" not in dataset or "gallery" not in dataset:
        return
    try:
        check_parts(dataset["query"], dataset["gallery"])
    except UserError as reason:
        # The training itself was no mistake.
        print(f"not evaluated: {reason}")
        return
    options = {"batch_size": training_args.per_device_eval_batch_size}
    facts = {"model": training_args.output_dir, "dataset": data_args.dataset}
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
