"""The JSON formats of a checkpoint folder: configuration, processor, weights, and the state of a training."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from .json_files import Count, Format, Share, Size, Text


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
    pair_weight: float | None = None
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
