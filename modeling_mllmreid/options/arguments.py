"""The options that several commands share: a dataclass for each concern. Those of data are in `data_arguments`."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from ..model.shipped_models import shipped_folder, shipped_name
from ..utils.errors import UserError
from ..utils.ranges import AtMostMillions, NotNegative, Pixels, Positive, Processes, Share

if TYPE_CHECKING:
    import torch

SHORT_DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def torch_dtype(name: str) -> "torch.dtype":
    """Returns the torch dtype of a number format's name in an option."""
    import torch  # takes seconds, and a model in an ONNX file needs none of it

    dtype: torch.dtype = getattr(torch, SHORT_DTYPES.get(name, name))
    return dtype


@dataclass
class ModelArguments:
    """The model and its number format."""

    model: str = field(
        metadata={
            "help": "Checkpoint, multimodal LLM or vision encoder: a folder, a Hub name or pedestrians-small "
            "(to embed: or FILE.onnx)."
        }
    )
    revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the model on the Hub."})
    dtype: Literal["float32", "bfloat16", "float16", "bf16", "fp16"] = field(
        default="float32",
        metadata={"help": "Format of the weights; in training, of the frozen weights. Heads are float32."},
    )

    def __post_init__(self) -> None:
        try:
            self.model = str(shipped_folder(self.model))
        except ValueError as error:
            raise UserError(f"model {error}") from error

    @property
    def model_name(self) -> str:
        """The model in reports: the name of a model that comes with the package, and not its folder there."""
        return shipped_name(self.model)

    @property
    def dtype_name(self) -> str:
        """The name of the number format in torch and NumPy, such as "bfloat16"."""
        return SHORT_DTYPES.get(self.dtype, self.dtype)

    @property
    def torch_dtype(self) -> "torch.dtype":
        """The number format as a torch dtype."""
        return torch_dtype(self.dtype)


# Filters of resizing, in the order of Pillow's numbers.
RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
COLOURS = "of red, green and blue, or one number for all"


@dataclass
class OnnxArguments:
    """How an ONNX file takes images. Default: what the file, or a preprocessor_config.json next to it, says."""

    onnx_output: str | None = field(
        default=None, metadata={"help": "Name of the output that is the feature, if the ONNX file has several."}
    )
    onnx_channels: Literal["rgb", "bgr"] | None = field(
        default=None, metadata={"help": "Order of the channels that the ONNX file takes. Default: rgb."}
    )
    onnx_layout: Literal["nchw", "nhwc"] | None = field(
        default=None,
        metadata={"help": "Order of the axes of the ONNX file's input. Default: by the axis of length 3, or nchw."},
    )
    onnx_rescale: Positive | None = field(
        default=None, metadata={"help": "Factor of the pixels 0 to 255. Default: 1/255, and 1 for an input of uint8."}
    )
    onnx_mean: list[float] = field(
        default_factory=list,
        metadata={"help": f"Mean that is subtracted after the factor, {COLOURS}. Default: ImageNet's."},
    )
    onnx_std: list[float] = field(
        default_factory=list,
        metadata={"help": f"Standard deviation that divides after the mean, {COLOURS}. Default: ImageNet's."},
    )
    onnx_resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] | None = field(
        default=None, metadata={"help": "Filter that resizes images for the ONNX file. Default: bilinear."}
    )
    onnx_trained_on: list[str] = field(
        default_factory=list,
        metadata={"help": "Data sets that the ONNX file was trained on, for the warning about seen people."},
    )

    def __post_init__(self) -> None:
        for name in ("onnx_mean", "onnx_std"):
            values = getattr(self, name)
            if len(values) not in (0, 1, 3):
                raise ValueError(f"{name}: has {len(values)} numbers: give one, or three for red, green and blue")
        if 0 in self.onnx_std:
            raise ValueError("onnx_std: has a 0, and pixels are divided by it: give another number")

    def given(self) -> dict[str, Any]:
        """Returns the options that the user set, by name."""
        return {name: value for name, value in asdict(self).items() if value not in (None, [])}


@dataclass
class MethodArguments:
    """Fields of the model configuration. Default: those of the checkpoint, or those of a new model."""

    height: Pixels | None = field(default=None, metadata={"help": "Height of the resized crops in pixels."})
    width: Pixels | None = field(default=None, metadata={"help": "Width of the resized crops in pixels."})
    test_feature: Literal["llm", "vision", "concat"] | None = field(
        default=None, metadata={"help": "The feature that the embeddings hold."}
    )
    feature_after_bn: bool | None = field(
        default=None, metadata={"help": "Take the test feature after the batch norm of its head."}
    )
    reid_on: Literal["llm", "vision", "both"] | None = field(
        default=None,
        metadata={"help": "Feature of the ReID losses; llm: of the LLM, vision: of the visual encoder."},
    )
    loss_lambda: float | None = field(
        default=None,
        metadata={
            "metavar": "0<=X<=1",
            "help": "Weight of the ReID loss; the language loss has the weight 1 - loss_lambda.",
        },
    )
    id_weight: NotNegative | None = field(default=None, metadata={"help": "Weight of the ID loss in the ReID loss."})
    triplet_weight: NotNegative | None = field(
        default=None, metadata={"help": "Weight of the triplet loss in the ReID loss."}
    )
    label_smoothing: Share | None = field(default=None, metadata={"help": "Label smoothing of the ID loss."})
    triplet_margin: NotNegative | None = field(
        default=None, metadata={"help": "Margin of the batch-hard triplet loss."}
    )
    triplet_soft_margin: bool | None = field(
        default=None, metadata={"help": "Use the soft margin log(1 + exp(d)) instead of the hinge."}
    )
    triplet_scale: Literal["none", "batch", "unit"] | None = field(
        default=None,
        metadata={"help": "Scale of the triplet loss; batch: by the spread of a batch, unit: features of length 1."},
    )
    bnneck: bool | None = field(
        default=None, metadata={"help": "BNNeck: the triplet loss before a batch norm, the ID classifier after it."}
    )
    llm_layer: int | None = field(
        default=None, metadata={"help": "LLM layer whose image positions are pooled. -1: the last one, after its norm."}
    )
    vision_layer: int | None = field(
        default=None,
        metadata={"help": "Vision tower layer whose patches are pooled. Default: the layer that the LLM reads."},
    )
    pooling: Literal["class", "mean", "gem", "class_mean"] | None = field(
        default=None,
        metadata={"help": "Feature of an encoder without a language model: class token, mean of patches, GeM, both."},
    )
    distillation_weight: NotNegative | None = field(
        default=None, metadata={"help": "Weight of the distillation from the text branch to the image branch."}
    )
    reid_text: bool | None = field(
        default=None, metadata={"help": "Also apply the ReID losses to captions, for text-to-image search."}
    )
    text_loss: Literal["contrastive", "triplet"] | None = field(
        default=None, metadata={"help": "Loss between images and captions, with --reid_text true."}
    )
    text_temperature: Positive | None = field(default=None, metadata={"help": "Temperature of the contrastive loss."})
    pair_weight: NotNegative | None = field(
        default=None,
        metadata={"help": "Weight of the loss of pairs: the LLM answers whether two crops are one person."},
    )

    def given(self) -> dict[str, Any]:
        """Returns the fields that the user set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass
class BatchSizeArguments:
    """How images are loaded."""

    batch_size: AtMostMillions = field(default=64, metadata={"metavar": "N>=1", "help": "Number of images in a batch."})
    num_workers: Processes = field(
        default=0,
        metadata={"metavar": "0<=N<=128", "help": "Number of loading processes. 0: load in the main process."},
    )

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError(
                f"batch_size {self.batch_size}, num_workers {self.num_workers}: give at least 1 and at least 0"
            )


@dataclass
class EmbeddingArguments(BatchSizeArguments):
    """How images are embedded."""

    flip_test: bool = field(
        default=False, metadata={"help": "Average the features of each image and its mirror image."}
    )
