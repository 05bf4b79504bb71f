"""Training: arguments, batches, ReIDTrainer, and one whole run."""

from .arguments import BatchArguments, ReIDTrainingArguments
from .run import train_reid
from .trainer import ReIDTrainer, RetrievalParts

__all__ = ["BatchArguments", "ReIDTrainer", "ReIDTrainingArguments", "RetrievalParts", "train_reid"]
