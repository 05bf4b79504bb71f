"""Evaluation: retrieval metrics, the colour baseline, tables and JSON."""

from pathlib import Path

from .color_histogram import color_histogram, color_histograms
from .metrics import RetrievalMetrics, evaluate_retrieval, metrics_from_blocks
from .report import format_table, write_json

# The folder of the `evaluate` library's module, for `evaluate.load(REID_METRIC)`.
REID_METRIC = str(Path(__file__).with_name("reid_metric"))

__all__ = [
    "REID_METRIC",
    "RetrievalMetrics",
    "color_histogram",
    "color_histograms",
    "evaluate_retrieval",
    "format_table",
    "metrics_from_blocks",
    "write_json",
]
