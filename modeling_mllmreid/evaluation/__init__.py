"""Evaluation: retrieval metrics, the colour baseline, tables and JSON."""

from .color_histogram import color_histogram, color_histograms
from .metrics import RetrievalMetrics, evaluate_retrieval, metrics_from_blocks
from .report import format_table, write_json

__all__ = [
    "RetrievalMetrics",
    "color_histogram",
    "color_histograms",
    "evaluate_retrieval",
    "format_table",
    "metrics_from_blocks",
    "write_json",
]
