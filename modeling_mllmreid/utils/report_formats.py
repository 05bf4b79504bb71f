"""The JSON formats of the reports that this package writes and reads: embeddings, metrics, thresholds, run.json."""

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, Field, model_validator

from .checkpoint_formats import RunFingerprintFile
from .data_formats import SplitsFile, WorldFile
from .errors import UserError
from .json_files import INT64, Count, Format, Share, Size, Text, read_json


class EmbeddingsFile(Format):
    """embeddings.json: the file names of the images, and the settings of the embeddings."""

    metadata: dict[str, Any]
    file_names: list[Text]


class EmbedMetadata(Format):
    """The metadata in embeddings.json, which the `embed` command writes and `search` reads."""

    model: Text
    revision: str | None = None
    dtype: Literal["float32", "float16", "bfloat16", "fp16", "bf16"]
    fields: dict[str, Any]
    images: Text
    test_feature: Literal["llm", "vision", "concat"]
    height: Size
    width: Size
    flip_test: bool
    # Of an ONNX file: its SHA-256, and the options that its settings are equal to.
    weights: str | None = None
    onnx: dict[str, Any] | None = None
    # Folders of version 0.1.0 call it `probe`.
    fingerprint: Annotated[list[float], Field(min_length=1, validation_alias=AliasChoices("fingerprint", "probe"))]


class IntervalValues(Format):
    """The confidence interval of a metric."""

    low: float
    high: float
    confidence: Share


def _shares(metrics: dict[str, float | None]) -> dict[str, float | None]:
    for name, value in metrics.items():
        if value is not None and not name.startswith("num_") and not 0 <= value <= 1:
            raise ValueError(f"{name} {value:g} is not a share, 0 to 1")
    return metrics


# The metrics of a feature: shares of 1 or null, and counts.
Metrics = Annotated[dict[str, float | None], AfterValidator(_shares)]


class MetricsFile(Format):
    """metrics.json of the `evaluate` command for one data set."""

    model: str
    dataset: str
    weights: str = ""
    test_feature: Text
    trained_on: list[str] = []
    tested_on: list[str]
    overlap: list[str] = []
    query_images: Count
    gallery_images: Count
    height: Size
    width: Size
    dtype: str
    quantize: Literal["4bit", "8bit"] | None = None
    exclude: list[str] = []
    pool_tracks: bool = False
    flip_test: bool = False
    published_counts: dict[str, bool] = {}
    metrics: dict[str, Metrics]
    intervals: dict[str, dict[str, IntervalValues]] = {}


class MatrixEntry(Format):
    """The fields of metrics.json that `evaluate --matrix` reads."""

    test_feature: Text
    trained_on: list[str]
    tested_on: list[str]
    metrics: dict[str, Metrics]


class SplitMetricsFile(Format):
    """metrics.json over random splits."""

    metrics_over_splits: dict[str, Any]
    metrics_of_splits: list[Any]


class DemoMetricsFile(Format):
    """metrics.json of the demo."""

    chosen_feature: Text
    val: dict[str, float]
    test: dict[str, dict[str, float | None]]


class MatrixFile(Format):
    """matrix.json of `evaluate --matrix`."""

    trained_on: list[str]
    tested_on: list[str]


class InspectionFile(Format):
    """data.json of the data command."""

    dataset: str
    published_counts: str
    parts: dict[str, dict[str, Any]]


class CalibrationValues(Format):
    """What distances mean for a feature, see `evaluation.calibration.Calibration`."""

    distances: Annotated[list[float], Field(min_length=1)]
    log_ratios: list[float]
    merge: Annotated[list[float], Field(min_length=5, max_length=5)]
    least: Annotated[float, Field(ge=0)]
    precision: Share
    recall: Share
    people: Count
    images: Count

    @model_validator(mode="after")
    def _monotone(self) -> "CalibrationValues":
        if len(self.distances) != len(self.log_ratios):
            raise ValueError(f"{len(self.distances)} distances have {len(self.log_ratios)} log_ratios")
        for name, values, sign in (("distances", self.distances, 1), ("log_ratios", self.log_ratios, -1)):
            if any(sign * (after - before) < 0 for before, after in pairwise(values)):
                raise ValueError(f"{name} are not {'ascending' if sign > 0 else 'descending'}")
        if self.merge[1] > 0 or self.merge[2] < 0:
            raise ValueError("merge: the odds rise with the distance, or fall with the similarity")
        return self


class FusionValues(Format):
    """Log odds from distance and pair score, see `evaluation.pair_fusion.PairFusion`."""

    # With these limits float32 holds the log odds of all pairs.
    constant: Annotated[float, Field(ge=-1e30, le=1e30)]
    distance: Annotated[float, Field(ge=-1e30, le=0)]
    score: Annotated[float, Field(ge=0, le=1e30)]
    share: Share
    low: Share
    high: Share
    people: Count
    pairs: Count
    top: Annotated[int, Field(ge=1, le=INT64)]
    gallery: Annotated[int, Field(ge=1, le=INT64)]
    ece_before: Share
    ece_after: Share

    @model_validator(mode="after")
    def _in_order(self) -> "FusionValues":
        if not self.low <= self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self


class ThresholdValues(Format):
    """A distance threshold, see `evaluation.threshold.Threshold`."""

    distance: Annotated[float, Field(ge=0)]
    low: Annotated[float, Field(ge=0)]
    high: Annotated[float, Field(ge=0)]
    fpir: Share
    tpir: Share
    searches: Count
    people: Count
    gallery: Count
    metric: Literal["cosine", "euclidean"] = "cosine"
    calibration: CalibrationValues | None = None
    fusion: FusionValues | None = None

    @model_validator(mode="after")
    def _in_order(self) -> "ThresholdValues":
        if not self.low <= self.high:
            raise ValueError(f"low {self.low:g} is above high {self.high:g}")
        return self


ThresholdsFile = dict[str, ThresholdValues]


class SplitCounts(Format):
    """Images and people of one split."""

    images: Count
    persons: Count


class RunFile(Format):
    """run.json: the settings of a training, and its hardware."""

    weights: str | None = None
    measured_on: str | None = None
    base_model: str | None = None
    data: dict[str, SplitCounts] | None = None
    sources: list[str] | None = None
    published_counts: dict[str, bool] | None = None
    texts: list[dict[str, Any]] | None = None
    adapters: dict[str, Any] | None = None
    batches: dict[str, Any] | None = None
    hardware: str | None = None
    environment: dict[str, str] | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None
    people: list[str] = []

    @model_validator(mode="after")
    def _names_its_weights(self) -> "RunFile":
        if self.weights is None and self.measured_on is None:
            raise ValueError("it does not name the weights that it describes")
        return self


# The reports of this package by file name.
BY_NAME: Mapping[str, Any] = {
    "metrics.json": MetricsFile | SplitMetricsFile | DemoMetricsFile,
    "matrix.json": MatrixFile,
    "data.json": InspectionFile,
    "threshold.json": ThresholdsFile,
    "threshold.json.before": ThresholdsFile,
    "run.json": RunFile,
    "run_facts.json": RunFingerprintFile,
    "embeddings.json": EmbeddingsFile,
    "splits.json": SplitsFile,
    "world.json": WorldFile,
}


def is_known_json(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file has the name and the format of a report of this package."""
    kind = BY_NAME.get(Path(path).name)
    try:
        return kind is not None and read_json(path, kind) is not None
    except UserError:
        return False
