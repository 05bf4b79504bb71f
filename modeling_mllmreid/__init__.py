"""MLLMReID: person re-identification with multimodal LLMs.

Each name of the public API is imported at its first use, so `import modeling_mllmreid` takes a fraction of a second.
The auto classes of transformers know the models from then on: `AutoModel` needs no `trust_remote_code`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .auto_classes import register_auto_classes

if TYPE_CHECKING:
    from .data.load import load_reid_dataset
    from .evaluation.metrics import RetrievalMetrics, evaluate_retrieval, metrics_from_blocks
    from .evaluation.relevance import image_relevance
    from .evaluation.statistics import compare, confidence_intervals
    from .gallery.filters import Where
    from .gallery.gallery import Gallery
    from .gallery.rows import CropInfo
    from .model import (
        MllmReIDConfig,
        MllmReIDModel,
        MllmReIDOutput,
        MllmReIDProcessor,
        MllmReIDVisionModel,
        MllmReIDVisionProcessor,
    )
    from .retrieval.embeddings import load_embeddings, save_embeddings
    from .retrieval.matching import SamePerson
    from .retrieval.overlay import draw_relevance
    from .retrieval.ranking import rank_gallery
    from .retrieval.reranking import rerank_blocks
    from .retrieval.sheet import ranked_sheet
    from .training.arguments import ReIDTrainingArguments
    from .training.batch_arguments import BatchArguments
    from .training.batches import TrainCollator, TrainDataset
    from .training.run import train_reid
    from .training.start import load_for_training
    from .training.trainer import ReIDTrainer

__version__ = "0.1.0"
__all__ = [
    "BatchArguments",
    "CropInfo",
    "Gallery",
    "MllmReIDConfig",
    "MllmReIDModel",
    "MllmReIDOutput",
    "MllmReIDProcessor",
    "MllmReIDVisionModel",
    "MllmReIDVisionProcessor",
    "ReIDTrainer",
    "ReIDTrainingArguments",
    "RetrievalMetrics",
    "SamePerson",
    "TrainCollator",
    "TrainDataset",
    "Where",
    "compare",
    "confidence_intervals",
    "draw_relevance",
    "evaluate_retrieval",
    "image_relevance",
    "load_embeddings",
    "load_for_training",
    "load_reid_dataset",
    "metrics_from_blocks",
    "rank_gallery",
    "ranked_sheet",
    "rerank_blocks",
    "save_embeddings",
    "train_reid",
]

_MODULES = {
    "BatchArguments": "training.batch_arguments",
    "CropInfo": "gallery.rows",
    "Gallery": "gallery.gallery",
    "MllmReIDConfig": "model",
    "MllmReIDModel": "model",
    "MllmReIDOutput": "model",
    "MllmReIDProcessor": "model",
    "MllmReIDVisionModel": "model",
    "MllmReIDVisionProcessor": "model",
    "ReIDTrainer": "training.trainer",
    "ReIDTrainingArguments": "training.arguments",
    "RetrievalMetrics": "evaluation.metrics",
    "SamePerson": "retrieval.matching",
    "TrainCollator": "training.batches",
    "TrainDataset": "training.batches",
    "Where": "gallery.filters",
    "compare": "evaluation.statistics",
    "confidence_intervals": "evaluation.statistics",
    "draw_relevance": "retrieval.overlay",
    "evaluate_retrieval": "evaluation.metrics",
    "image_relevance": "evaluation.relevance",
    "load_embeddings": "retrieval.embeddings",
    "load_for_training": "training.start",
    "load_reid_dataset": "data.load",
    "metrics_from_blocks": "evaluation.metrics",
    "rank_gallery": "retrieval.ranking",
    "ranked_sheet": "retrieval.sheet",
    "rerank_blocks": "retrieval.reranking",
    "save_embeddings": "retrieval.embeddings",
    "train_reid": "training.run",
}
# Modules that import neither the models nor transformers.
_WITHOUT_MODELS = {
    "evaluation.metrics",
    "evaluation.statistics",
    "gallery.filters",
    "gallery.gallery",
    "gallery.rows",
    "retrieval.embeddings",
    "retrieval.matching",
    "retrieval.ranking",
    "retrieval.reranking",
}

register_auto_classes()


def _load(name: str) -> Any:
    """Imports a public name from its module at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _MODULES[name] not in _WITHOUT_MODELS:
        # First, like the auto classes do: threads that import both in another order would wait for each other.
        importlib.import_module("transformers")
    value = globals()[name] = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    return value


if not TYPE_CHECKING:
    # Hidden from type checkers, which would accept any name otherwise.
    __getattr__ = _load


def __dir__() -> list[str]:
    """The public names too, before their first use."""
    return sorted({*globals(), *__all__})
