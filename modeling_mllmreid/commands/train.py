"""`train`: a model on a data set's training part; the best checkpoint by the validation people is kept."""

from ..data import load_reid_dataset
from ..errors import UserError
from ..evaluation.protocol import check_parts
from ..training import BatchArguments, ReIDTrainingArguments, train_reid
from .arguments import DataArguments, MethodArguments, ModelArguments
from .evaluate import EvaluateArguments, evaluate_and_report
from .loading import load_model
from .options import parse


def main(argv: list[str]) -> None:
    """Trains, saves into `output_dir`, and where the data set has query and gallery evaluates the saved model there."""
    groups = (ModelArguments, MethodArguments, DataArguments, BatchArguments, ReIDTrainingArguments)
    model_args, method_args, data_args, batch_args, training_args = parse(groups, argv, "train")
    dataset = load_reid_dataset(data_args.dataset, texts=batch_args.texts, **data_args.options())
    model, processor = load_model(model_args, method_args.given())
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
