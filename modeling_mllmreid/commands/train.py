"""`train`: a model on a data set's training part, the best checkpoint kept by the validation people."""

from dataclasses import asdict, dataclass, field

from ..data import load_reid_dataset
from ..training.arguments import ReIDTrainingArguments
from ..training.run import train_reid
from .arguments import DataArguments, MethodArguments, ModelArguments
from .loading import load_model
from .options import parse


@dataclass
class TrainingDataArguments(DataArguments):
    """What training adds to a data set: the texts of the language loss, and the people held out of it."""

    texts: str | None = field(
        default=None, metadata={"help": "Continuations of the captions, written by the continuations command."}
    )
    val_identities: int = field(
        default=100, metadata={"help": "People taken out of the training part to choose the best checkpoint by."}
    )


def main(argv: list[str]) -> None:
    """Parses and loads; `train_reid` does the rest."""
    groups = (ModelArguments, MethodArguments, TrainingDataArguments, ReIDTrainingArguments)
    model_args, method_args, data_args, training_args = parse(groups, argv, "train")
    dataset = load_reid_dataset(data_args.dataset, texts=data_args.texts, **data_args.options())
    model, processor = load_model(**asdict(model_args), fields=method_args.given())
    train_reid(model, processor, dataset, data_args, training_args)
