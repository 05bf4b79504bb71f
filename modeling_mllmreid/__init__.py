"""MLLMReID: person re-identification with multimodal LLMs. Importing the package registers the auto classes."""

from .evaluation.metrics import RetrievalMetrics, evaluate_retrieval
from .model import MllmReIDConfig, MllmReIDModel, MllmReIDOutput, MllmReIDProcessor

__version__ = "0.1.0"
__all__ = [
    "MllmReIDConfig",
    "MllmReIDModel",
    "MllmReIDOutput",
    "MllmReIDProcessor",
    "RetrievalMetrics",
    "evaluate_retrieval",
]
