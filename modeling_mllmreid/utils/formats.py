"""The format of every JSON file that may come from outside, as a pydantic model; `json_files` reads them.

Fields that a model does not name are kept (`extra="allow"`), so that newer and older files can be read.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    model_validator,
)

from .errors import UserError
from .json_files import read_json

INT64 = 2**63 - 1


class Format(BaseModel):
    """The base of all formats: exact types, no NaN or infinity, unknown fields are kept."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1, le=100_000)]
Text = Annotated[str, Field(min_length=1)]
Id = Annotated[int, Field(ge=0, le=INT64)]


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


class ThresholdValues(Format):
    """A distance threshold chosen on val, see `evaluation.threshold.Threshold`."""

    distance: Annotated[float, Field(ge=0)]
    low: Annotated[float, Field(ge=0)]
    high: Annotated[float, Field(ge=0)]
    fpir: Share
    tpir: Share
    searches: Count
    people: Count
    gallery: Count
    metric: Literal["cosine", "euclidean"] = "cosine"

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

    @model_validator(mode="after")
    def _names_its_weights(self) -> "RunFile":
        if self.weights is None and self.measured_on is None:
            raise ValueError("it does not name the weights that it describes")
        return self


class ExportConfigFile(Format):
    """The fields of config.json that the card and a push read. A missing field has the default of a new model."""

    model_type: Text
    height: Size = 252
    width: Size = 126
    test_feature: Text = "llm"
    dtype: Literal["float32", "float16", "bfloat16", "float64"] | None = None
    auto_map: dict[str, str | list[str | None]] = {}
    num_identities: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    identities_digest: str | None = None
    trained_on: list[str] | None = None
    overlap: list[str] | None = None
    base_licence: str | None = None
    backbone: str | None = None
    backbone_revision: str | None = None
    adapter: str | None = None
    loss_lambda: Share = 0.7
    reid_on: Literal["llm", "vision", "both"] = "both"
    id_weight: float | None = None
    triplet_weight: float | None = None
    label_smoothing: float | None = None
    triplet_margin: float | None = None
    triplet_soft_margin: bool = False
    triplet_scale: str = "none"
    distillation_weight: float | None = None
    reid_text: bool = False
    mllm_config: dict[str, Any] | None = None
    vision_config: dict[str, Any] | None = None
    # Of a vision form; `class_token` in checkpoints of version 0.1.0, all of which were exported.
    pooling: str | None = None
    exported: bool = False
    class_token: bool | None = None


# One number for all colours, or one for each of red, green and blue.
Colours = float | Annotated[list[float], Field(min_length=3, max_length=3)]


class ImageProcessorFile(Format):
    """preprocessor_config.json: the fields of transformers' image processors that an ONNX file needs."""

    size: dict[str, Any] | int | None = None
    crop_size: dict[str, Any] | int | None = None
    do_rescale: bool | None = None
    rescale_factor: Annotated[float, Field(gt=0)] | None = None
    do_normalize: bool | None = None
    image_mean: Colours | None = None
    image_std: Colours | None = None
    # Pillow's number of the filter.
    resample: Annotated[int, Field(ge=0, le=5)] | None = None

    @model_validator(mode="after")
    def _divides(self) -> "ImageProcessorFile":
        if self.image_std == 0 or (isinstance(self.image_std, list) and 0 in self.image_std):
            raise ValueError("image_std has a 0, and pixels are divided by it")
        return self

    def size_in_pixels(self) -> dict[str, int]:
        """Returns height and width, of `size` or of `crop_size`, or nothing where neither has both."""
        for size in (self.size, self.crop_size):
            if isinstance(size, dict) and all(type(size.get(side)) is int for side in ("height", "width")):
                return {side: size[side] for side in ("height", "width") if size[side] > 0}
        return {}


class ProcessorFile(Format):
    """processor_config.json: the image processor inside a processor of transformers."""

    image_processor: ImageProcessorFile | None = None


class WeightIndexFile(Format):
    """model.safetensors.index.json: the file that holds each weight."""

    weight_map: Annotated[dict[str, Text], Field(min_length=1)]


class RunFingerprintFile(Format):
    """run_facts.json of a checkpoint: the settings that a training must share to continue from it."""

    settings: dict[str, Any]
    start: Any
    trained: str
    data: str


class TrainerStateFile(Format):
    """The fields of trainer_state.json that this package reads."""

    log_history: list[dict[str, Any]] = []
    global_step: Count = 0


class ResumedStateFile(TrainerStateFile):
    """The fields of trainer_state.json that the Trainer reads when a training continues."""

    global_step: Count
    epoch: Annotated[float, Field(ge=0)] | None = None
    max_steps: int = 0
    num_train_epochs: Count = 0
    num_input_tokens_seen: Count = 0
    total_flos: float = 0
    train_batch_size: Count | None = None
    best_metric: float | None = None
    best_global_step: Count | None = None
    best_model_checkpoint: str | None = None
    stateful_callbacks: dict[str, Any] | None = None


class ProofFile(Format):
    """proof.json of a checkpoint: the proof that the user's own training wrote it."""

    hmac: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class LogSums(Format):
    """Sums of the loss parts, and the number of micro-batches in each sum."""

    sums: dict[str, float]
    counts: dict[str, Count]


class TrainingArgsFile(Format):
    """The fields of training_args.json that the card shows."""

    identities_per_batch: Count | None = None
    images_per_identity: Count | None = None
    pairs_per_batch: Count | None = None
    gradient_accumulation_steps: Count | None = None
    learning_rate: float | None = None
    learning_rates: dict[str, float] | None = None
    lr_scheduler_type: str | None = None
    warmup_steps: float | None = None
    optim: str | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    bf16: bool | None = None
    fp16: bool | None = None
    seed: int | None = None
    load_best_model_at_end: bool | None = None


class DiagnosticsState(Format):
    """Diagnostics that are not in the log yet, and kinds of warnings: of the last measured step, and given before."""

    entries: list[dict[str, int | float]] = []
    failing: list[str] = []
    warned: list[str] = []


class LogWindowFile(Format):
    """log_window_N.json of a checkpoint: sums and diagnostics since the last log."""

    loss: float
    step: Count
    parts: LogSums
    # Older checkpoints have none.
    diagnostics: DiagnosticsState = DiagnosticsState()


class SplitsFile(Format):
    """splits.json of own data: the file names of each split, and the share and the seed of the draw."""

    train: list[Text]
    query: list[Text]
    gallery: list[Text]
    val: list[Text] = []
    test_share: Share | None = None
    split_seed: Count | None = None


class TorchreidImageSplit(Format):
    """One entry of torchreid's splits.json: the images of each split, each alone or first in a list."""

    train: list[str | list[Any]]
    query: list[str | list[Any]]
    gallery: list[str | list[Any]]


class TorchreidPersonSplit(Format):
    """One entry of torchreid's splits_single_shot.json: the persons of each split."""

    train: list[Id]
    test: list[Id]


class CaptionEntryFields(Format):
    """One entry of a captions file of the CUHK-PEDES schema, besides its image's path."""

    split: Literal["train", "val", "test"]
    captions: list[str]
    id: Id


class CaptionRecordLine(Format):
    """One line of a captions sidecar: a caption that a model wrote for an image."""

    source: str
    split: str
    file_name: Text
    caption_index: Count
    caption: str
    provenance: dict[str, Any]


class TextRecordLine(CaptionRecordLine):
    """One line of a texts sidecar: a caption and its continuation, with the ids that were written."""

    continuation: str
    ids: list[Id] | None = None
    tokenizer: str | None = None


class WorldFile(Format):
    """world.json of a rendered world."""

    world: Text
    version: int


# The output of `data.readers.matlab_process`: variables of a MATLAB file by name.
MatlabVariables = dict[str, JsonValue]

# The reports of this package by file name.
BY_NAME: Mapping[str, Any] = {
    "metrics.json": MetricsFile | SplitMetricsFile | DemoMetricsFile,
    "matrix.json": MatrixFile,
    "data.json": InspectionFile,
    "threshold.json": ThresholdsFile,
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
