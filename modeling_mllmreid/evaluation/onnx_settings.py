"""How an ONNX file takes images: found from options, the file itself, and a JSON file next to it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..model.images import LARGEST_SIDE
from ..options.arguments import RESAMPLING, OnnxArguments
from ..utils.checkpoint_formats import ImageProcessorFile, ProcessorFile
from ..utils.errors import UserError
from ..utils.json_files import parse_json, read_json
from .onnx_files import OnnxFile

# Entries of metadata_props in files that the export command writes.
SETTINGS_KEY, TRAINED_ON_KEY = "image_processor", "trained_on"
DEFAULT_SIZE, BILINEAR = (256, 128), 2
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
INPUTS: dict[str, Any] = {**FLOATS, "tensor(uint8)": np.uint8}
# The axis of the channels.
LAYOUTS = {"nchw": 1, "nhwc": 3}


@dataclass(frozen=True)
class OnnxSettings:
    """How an image becomes the input of an ONNX file, and which output is its feature.

    Args:
        height, width (`int`): size in pixels.
        channels (`str`): order of the channels, "rgb" or "bgr".
        layout (`str`): order of the axes, "nchw" or "nhwc".
        rescale (`float`): factor of the pixels, which are 0 to 255.
        mean, std (`tuple[float, ...]`): of red, green and blue after the factor.
        resample (`str`): filter of the resizing, one of `RESAMPLING`.
        output (`str`): name of the output that is the feature.
    """

    height: int
    width: int
    channels: str
    layout: str
    rescale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resample: str
    output: str

    def __str__(self) -> str:
        """Returns the settings in one line."""
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        return (
            f"{self.height}x{self.width} {self.channels} {self.layout}, {self.resample}, rescale {self.rescale:g}, "
            f"mean {mean}, std {std}, output {self.output!r}"
        )

    def options(self) -> dict[str, Any]:
        """Returns the options of [`OnnxArguments`] that give these settings."""
        values = {name: value for name, value in asdict(self).items() if name not in ("height", "width")}
        return {f"onnx_{name}": list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def find_settings(file: OnnxFile, arguments: OnnxArguments, size: Mapping[str, int]) -> OnnxSettings:
    """Finds out how an ONNX file takes images.

    Each setting comes from the first of these that has it: the options, the file (shape and number format of its input,
    entry `image_processor` of its metadata), a JSON file of an image processor in its folder, the defaults.

    Args:
        file ([`OnnxFile`]): The file.
        arguments ([`OnnxArguments`]): The options.
        size (`Mapping[str, int]`): Height and width, where the options set them.

    Returns:
        [`OnnxSettings`]

    Raises:
        UserError: The file does not take one image, has several outputs, or an option contradicts it.
    """
    entry = _image_input(file)
    layout, fixed = _layout_and_size(file, entry, arguments.onnx_layout)
    stored = _stored_settings(file)
    stored_size = stored.size_in_pixels()
    sides = []
    for name, known, default in zip(("height", "width"), fixed, DEFAULT_SIZE, strict=True):
        given = size.get(name)
        if known and given and given != known:
            raise UserError(f"{name} {given}: the input of {file.path} has the {name} {known}: leave {name} out")
        sides.append(known or given or stored_size.get(name) or default)
        if sides[-1] > LARGEST_SIDE:
            raise UserError(f"model {file.path}: its input has the {name} {sides[-1]}, more than {LARGEST_SIDE} pixels")
    rescale, mean, std = _normalisation(file, entry, arguments, stored)
    return OnnxSettings(
        height=sides[0],
        width=sides[1],
        channels=arguments.onnx_channels or "rgb",
        layout=layout,
        rescale=rescale,
        mean=mean,
        std=std,
        resample=arguments.onnx_resample or RESAMPLING[BILINEAR if stored.resample is None else stored.resample],
        output=_output_name(file, arguments.onnx_output),
    )


def stored_data_sets(file: OnnxFile) -> list[str]:
    """Returns the data sets that the file names as those of its training."""
    text = file.metadata.get(TRAINED_ON_KEY)
    return [] if text is None else parse_json(text, list[str], where=f"{file.path}: metadata {TRAINED_ON_KEY}")


def _described(entries: Sequence[Any]) -> str:
    """Returns the names, types and shapes of inputs or outputs."""
    return ", ".join(f"{entry.name!r} {entry.type.removeprefix('tensor')} {entry.shape}" for entry in entries)


def _image_input(file: OnnxFile) -> Any:
    """Returns the only input. Raises UserError if there are others, or if it is no image."""
    inputs = file.inputs
    if len(inputs) != 1:
        raise UserError(
            f"model {file.path}: has {len(inputs)} inputs ({_described(inputs)}): only a file with one input, the "
            "image, can be used: export the image encoder alone"
        )
    entry = inputs[0]
    if entry.type not in INPUTS or len(entry.shape) not in (0, 4):
        raise UserError(
            f"model {file.path}: its input {_described(inputs)} is not an image, which has 4 axes and is of "
            "float32, float16, float64 or uint8: export the image encoder"
        )
    return entry


def _layout_and_size(file: OnnxFile, entry: Any, given: str | None) -> tuple[str, list[int | None]]:
    """Returns the layout, and height and width where the file fixes them (an axis of another kind is dynamic)."""
    shape = [axis if isinstance(axis, int) and axis > 0 else None for axis in entry.shape or [None] * 4]
    fitting = [layout for layout, axis in LAYOUTS.items() if shape[axis] in (3, None)]
    # An axis of 3 is the channels; a dynamic one only may be.
    fitting.sort(key=lambda layout: shape[LAYOUTS[layout]] is None)
    if not fitting or (given and given not in fitting):
        layout = f" in the layout {given}" if given and fitting else ""
        raise UserError(
            f"model {file.path}: its input of shape {entry.shape} has no 3 colour channels{layout}: "
            + ("leave onnx_layout out" if layout else "only models of colour images can be used")
        )
    layout = given or fitting[0]
    return layout, shape[2:] if layout == "nchw" else shape[1:3]


def _stored_settings(file: OnnxFile) -> ImageProcessorFile:
    """Returns the settings of an image processor in the file's metadata, or in a JSON file next to it."""
    text, folder = file.metadata.get(SETTINGS_KEY), file.path.parent
    if text is not None:
        return parse_json(text, ImageProcessorFile, where=f"{file.path}: metadata {SETTINGS_KEY}")
    if (folder / "processor_config.json").is_file():
        nested = read_json(folder / "processor_config.json", ProcessorFile).image_processor
        if nested is not None:
            return nested
    if (folder / "preprocessor_config.json").is_file():
        return read_json(folder / "preprocessor_config.json", ImageProcessorFile)
    return ImageProcessorFile()


def _normalisation(
    file: OnnxFile, entry: Any, arguments: OnnxArguments, stored: ImageProcessorFile
) -> tuple[float, tuple[float, ...], tuple[float, ...]]:
    """Returns the factor, the mean and the standard deviation."""
    given = {"onnx_rescale": arguments.onnx_rescale, "onnx_mean": arguments.onnx_mean, "onnx_std": arguments.onnx_std}
    unchanged = (1.0, (0.0,) * 3, (1.0,) * 3)
    if INPUTS[entry.type] is np.uint8:
        values = (arguments.onnx_rescale or 1.0, _colours(arguments.onnx_mean, 0.0), _colours(arguments.onnx_std, 1.0))
        if values != unchanged:
            name = next(name for name, value in given.items() if value)
            raise UserError(f"{name}: the input of {file.path} is uint8, the pixels as they are: leave {name} out")
        return unchanged
    if arguments.onnx_rescale is not None and not (arguments.onnx_mean and arguments.onnx_std):
        raise UserError(
            "onnx_rescale: give onnx_mean and onnx_std too, which depend on it: 0 and 1 where the file normalises"
        )
    rescale = 1.0 if stored.do_rescale is False else stored.rescale_factor or 1 / 255
    mean = 0.0 if stored.do_normalize is False else stored.image_mean
    std = 1.0 if stored.do_normalize is False else stored.image_std
    return (
        arguments.onnx_rescale or rescale,
        _colours(arguments.onnx_mean or mean, IMAGENET_MEAN),
        _colours(arguments.onnx_std or std, IMAGENET_STD),
    )


def _colours(values: float | Sequence[float] | None, default: float | Sequence[float]) -> tuple[float, ...]:
    """Returns three numbers from three or one, or from the default without any."""
    values = default if values is None or values == [] else values
    numbers = [values] if isinstance(values, (int, float)) else list(values)
    return tuple(float(number) for number in (numbers * 3 if len(numbers) == 1 else numbers))


def _output_name(file: OnnxFile, given: str | None) -> str:
    """Returns the name of the output that is the feature."""
    outputs = {entry.name: entry for entry in file.outputs}
    if given is None and len(outputs) > 1:
        raise UserError(
            f"model {file.path}: has {len(outputs)} outputs ({_described(list(outputs.values())[:20])}): choose the "
            "feature with --onnx_output NAME"
        )
    name = next(iter(outputs)) if given is None else given
    if name not in outputs:
        raise UserError(f"onnx_output {name!r}: {file.path} has {', '.join(map(repr, [*outputs][:20]))}: give one")
    if outputs[name].type not in FLOATS:
        raise UserError(
            f"model {file.path}: its output {_described([outputs[name]])} is not a feature, which is of float32, "
            "float16 or float64: give another output with --onnx_output, or export the feature"
        )
    return name
