"""An ONNX file as an image encoder, in NumPy: it embeds person crops like a vision form, and cannot be trained."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..model.images import to_rgb
from ..options.arguments import RESAMPLING, OnnxArguments
from ..utils.errors import UserError
from ..utils.processes import on_main
from .onnx_files import OnnxFile, find_onnx, reason
from .onnx_settings import INPUTS, OnnxSettings, find_settings, stored_data_sets

logger = logging.getLogger(__name__)

# Largest difference of one crop's feature between two batches, as a share of its largest number.
TOLERANCE = {np.float16: 3e-2}
DEFAULT_TOLERANCE = 1e-4
SMALLEST_LENGTH = 1e-12  # a shorter feature has no direction, and stays short


@dataclass
class OnnxConfig:
    """The fields of a model's configuration that embedding and evaluation read."""

    trained_on: list[str]
    test_feature: str = "vision"
    reid_text: bool = False


class OnnxProcessor:
    """Converts images to the pixel values of an ONNX file.

    Args:
        settings ([`OnnxSettings`]): How the file takes images.
    """

    def __init__(self, settings: OnnxSettings):
        self.settings = settings
        self.height, self.width = settings.height, settings.width

    def __call__(self, images: Sequence[Any]) -> dict[str, np.ndarray]:
        """Converts PIL images. Returns `pixel_values`, (B, 3, H, W) float32, with the channels in the file's order."""
        settings, size = self.settings, (self.width, self.height)
        resample = Image.Resampling(RESAMPLING.index(settings.resample))
        pixels = np.stack([np.asarray(to_rgb(image).resize(size, resample), dtype=np.float32) for image in images])
        mean, std = (np.asarray(values, dtype=np.float32) for values in (settings.mean, settings.std))
        pixels = (pixels * np.float32(settings.rescale) - mean) / std
        pixels = pixels[..., ::-1] if settings.channels == "bgr" else pixels
        return {"pixel_values": np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}


class OnnxEncoder:
    """An ONNX file with the interface of a vision form for embedding and evaluation.

    Args:
        file ([`OnnxFile`]): The opened file.
        settings ([`OnnxSettings`]): How it takes images, and its output.
        trained_on (`list[str]`): Names of the data sets that it was trained on.

    Raises:
        UserError: The output is not one feature for each crop.
    """

    def __init__(self, file: OnnxFile, settings: OnnxSettings, trained_on: list[str]):
        self.file, self.settings = file, settings
        self.config = OnnxConfig(trained_on)
        (entry,) = file.inputs
        self.input_name: str = entry.name
        self.input_type: Any = INPUTS[entry.type]
        batch = entry.shape[0] if entry.shape else None
        # Number of crops of every run, or None where any number is possible.
        self.batch_size: int | None = batch if isinstance(batch, int) and batch > 0 else None
        self._check_batches()

    def metadata(self) -> dict[str, Any]:
        """Returns what identifies the file and its settings, for embeddings and reports."""
        size = {"height": self.settings.height, "width": self.settings.width}
        return {"weights": self.file.digest, "dtype": self.dtype, "fields": size, "onnx": self.settings.options()}

    @property
    def dtype(self) -> str:
        """Number format of the input; float32 for an input of uint8 or float64, as its embeddings are float32."""
        return "float16" if self.input_type is np.float16 else "float32"

    def encode_images(self, pixel_values: np.ndarray, *, flip_test: bool = False) -> np.ndarray:
        """Embeds person crops.

        Args:
            pixel_values (`np.ndarray` of shape `(B, 3, H, W)`): Crops from [`OnnxProcessor`].
            flip_test (`bool`): Average the features of each crop and its mirror image.

        Returns:
            `np.ndarray` of shape `(B, D)`: float32, L2-normalised.

        Raises:
            UserError: A feature is not finite.
        """
        if flip_test:
            return _normalised(self.encode_images(pixel_values) + self.encode_images(pixel_values[..., ::-1]))
        step = self.batch_size or len(pixel_values)
        pieces = [self._run(pixel_values[start : start + step]) for start in range(0, len(pixel_values), step)]
        features = np.concatenate(pieces)
        if not np.isfinite(features).all():
            raise UserError(
                f"model {self.file.path}: the feature of a crop has NaN or infinity: check onnx_rescale, onnx_mean and "
                "onnx_std, or export the model in float32"
            )
        return _normalised(features)

    def _run(self, pixels: np.ndarray) -> np.ndarray:
        """Returns the features (n, D) of one run on (n, 3, H, W); copies of the last crop fill a fixed batch."""
        count = len(pixels)
        if self.batch_size and count < self.batch_size:
            pixels = np.concatenate([pixels, np.repeat(pixels[-1:], self.batch_size - count, axis=0)])
        crops = len(pixels)
        pixels = pixels.transpose(0, 2, 3, 1) if self.settings.layout == "nhwc" else pixels
        try:
            (output,) = self.file.session.run(
                [self.settings.output], {self.input_name: np.ascontiguousarray(pixels).astype(self.input_type)}
            )
        except Exception as error:  # onnxruntime's errors have no public class in common
            size = f"{self.settings.height}x{self.settings.width}"
            raise UserError(
                f"model {self.file.path}: onnxruntime cannot run it on a batch of {crops} of {size} ({reason(error)}): "
                "give the size of its training with --height and --width"
            ) from error
        # A global pooling may leave axes of length 1; a file of one crop may leave out the batch.
        lengths = output.shape if crops == 1 else output.shape[1:]
        if output.size != crops * max(lengths, default=0) or (crops > 1 and output.shape[0] != crops):
            raise UserError(
                f"model {self.file.path}: its output {self.settings.output!r} has the shape {list(output.shape)} for "
                f"a batch of {crops}, not one feature for each crop: give another output with --onnx_output, or "
                "export the pooled feature"
            )
        features: np.ndarray = output.reshape(crops, -1)[:count].astype(np.float32)
        return features

    def _check_batches(self) -> None:
        """Checks that a crop's feature does not depend on the other crops of a run; otherwise runs have one crop.

        Raises UserError if the file takes several crops alone, or fails on one crop.
        """
        noise = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), dtype=np.uint8)
        # A dark one and a light one: a quantised file may scale both by the range of the batch.
        noise[0] //= 8
        crops = OnnxProcessor(self.settings)([Image.fromarray(image) for image in noise])["pixel_values"]
        alone = self._run(crops[:1])
        if self.batch_size == 1:
            return
        try:
            together = self._run(crops)
        except UserError:
            fault = "it gives no features for a batch of two"
        else:
            tolerance = TOLERANCE.get(self.input_type, DEFAULT_TOLERANCE) * float(np.abs(alone).max(initial=0))
            if together.shape[1:] == alone.shape[1:] and np.abs(together[0] - alone[0]).max(initial=0) <= tolerance:
                return
            fault = "its features depend on the other crops of a batch"
        if self.batch_size:
            raise UserError(
                f"model {self.file.path}: takes batches of {self.batch_size} crops, and {fault}: export it for one "
                "crop or for any number"
            )
        logger.warning("model %s: runs one crop at a time: %s", self.file.path, fault)
        self.batch_size = 1


def _normalised(features: np.ndarray) -> np.ndarray:
    """Returns features (B, D) of length 1."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit: np.ndarray = features / np.maximum(lengths, SMALLEST_LENGTH)
    return unit


def check_onnx_options(arguments: OnnxArguments, models: Sequence[str]) -> None:
    """Raises UserError for options of ONNX files if none of the models is one."""
    if (given := arguments.given()) and not any(map(find_onnx, models)):
        raise UserError(f"{', '.join(given)}: only for ONNX files, and no model is one: leave out {next(iter(given))}")


def print_onnx(model: object) -> None:
    """Prints on process 0 how an ONNX file takes images, since wrong settings raise no error; nothing for others."""
    if isinstance(model, OnnxEncoder):
        on_main(print, f"{model.file.path}: {model.settings}")


def load_onnx(
    path: Path, arguments: OnnxArguments, size: Mapping[str, int], dtype: str = "float32"
) -> tuple[OnnxEncoder, OnnxProcessor]:
    """Opens an ONNX file as an image encoder.

    Args:
        path (`Path`): The file.
        arguments ([`OnnxArguments`]): How it takes images, where the file does not say so.
        size (`Mapping[str, int]`): Height and width, where the options set them.
        dtype (`str`): Number format that the user asked for.

    Returns:
        `tuple[OnnxEncoder, OnnxProcessor]`

    Raises:
        UserError: The file is not an encoder of images with one feature, or an option contradicts it.
    """
    file = OnnxFile(path)
    settings = find_settings(file, arguments, size)
    encoder = OnnxEncoder(file, settings, arguments.onnx_trained_on or stored_data_sets(file))
    if dtype not in ("float32", encoder.dtype):
        raise UserError(f"dtype {dtype}: an ONNX file has its own number format: leave dtype out")
    return encoder, OnnxProcessor(settings)
