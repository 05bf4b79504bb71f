"""Training: arguments, batches, ReIDTrainer, and one whole run."""

from .adapters import AdapterArguments, prepare_training
from .arguments import BatchArguments, ReIDTrainingArguments
from .run import train_reid
from .trainer import ReIDTrainer, RetrievalParts

__all__ = [
    "AdapterArguments",
    "BatchArguments",
    "ReIDTrainer",
    "ReIDTrainingArguments",
    "RetrievalParts",
    "prepare_training",
    "train_reid",
]
