"""Evaluation: metrics, statistics, verification, the retrieval protocol, reports and plots."""

from pathlib import Path

# The folder of the `evaluate` library's module, for `evaluate.load(REID_METRIC)`.
REID_METRIC = str(Path(__file__).with_name("reid_metric"))
