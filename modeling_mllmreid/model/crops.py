"""Converts whole person crops, from paths, PIL images, arrays or tensors, to pixels; shared by both processors."""

import contextlib
import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from transformers import BatchFeature
from transformers.utils import is_torchvision_available

from .images import MAX_PIXELS, open_image, to_rgb
from .publishing import PrivatePush
from .shipped_models import shipped_folder

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

CHANNELS = (1, 3, 4)
# Limits of an image from the web, in bytes and in seconds.
LARGEST_DOWNLOAD = 100_000_000
TIMEOUT = 60
# Options of Hugging Face's text processing, ignored here: texts are always padded and never truncated.
TEXT_OPTIONS = ("padding", "truncation", "max_length", "add_special_tokens", "return_attention_mask")


class CropProcessor(PrivatePush):
    """Base class of both processors: loading, and the size that crops are resized to."""

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **options: Any) -> Any:
        """Loads a processor as in transformers, and checks that it makes pixels.

        Args:
            name_or_path (`str` or `os.PathLike`):
                A checkpoint's folder, its name on the Hub, or the name of a model that comes with the package.
            **options:
                As in transformers. The checkpoint's own code runs only with `trust_remote_code=True`.

        Returns:
            The processor.

        Raises:
            OSError: if files are missing.
            ValueError: for settings that make no finite pixels of height x width.
        """
        name_or_path = shipped_folder(name_or_path)
        with processor_files(name_or_path):
            processor = super().from_pretrained(name_or_path, **{"trust_remote_code": False, **options})
            (processor[0] if isinstance(processor, tuple) else processor).check_pixels()
        return processor

    def check_pixels(self) -> None:
        """Raises ValueError if an image does not become finite pixels of height x width."""
        from PIL import Image

        pixels = self(images=Image.new("RGB", (8, 16)))["pixel_values"]
        if pixels.shape != (1, 3, self.height, self.width) or not pixels.isfinite().all():
            raise ValueError(
                f"its pixels are {tuple(pixels.shape)}, from {pixels.min():g} to {pixels.max():g}: they must be finite "
                f"and 3 x {self.height} x {self.width}"
            )

    def check_size(self) -> None:
        """Raises ValueError if the image processor does not resize to a height and a width of a sensible size."""
        size = self.image_processor.size
        sides = [size.get(side) for side in ("height", "width")]
        if not all(type(side) is int and side > 0 for side in sides) or sides[0] * sides[1] > MAX_PIXELS:
            raise ValueError(
                f"image_processor.size is {dict(size)}; give height and width, {MAX_PIXELS} pixels at most"
            )

    @property
    def height(self) -> int:
        """Height in pixels that crops are resized to."""
        height: int = self.image_processor.size["height"]
        return height

    @property
    def width(self) -> int:
        """Width in pixels that crops are resized to."""
        width: int = self.image_processor.size["width"]
        return width


@contextlib.contextmanager
def processor_files(name_or_path: str | os.PathLike[str]) -> Iterator[None]:
    """Converts transformers' errors about wrong settings to a ValueError in one line; an OSError stays as it is."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # transformers accepts settings of any type and fails later in any way
        raise ValueError(f"{name_or_path}: the processor's files: {' '.join(str(error).split())[:300]}") from error


def as_list(value: Any) -> list[Any]:
    """Returns a list or a tuple as a list, and anything else as a list of one item."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def crop_image_processor(size: dict[str, int], **settings: Any) -> Any:
    """Returns an image processor that resizes whole crops, rescales and normalises.

    Each name of the class belongs to one backend. The wrong one falls back to the other, with a warning.

    Args:
        size (`dict[str, int]`):
            "height" and "width" in pixels.
        **settings:
            Further settings of `CLIPImageProcessor`, such as `image_mean`.
    """
    if is_torchvision_available():
        from transformers import CLIPImageProcessor as ImageProcessor
    else:
        from transformers import CLIPImageProcessorPil as ImageProcessor
    return ImageProcessor(size=size, do_center_crop=False, **settings)


def crop_pixels(image_processor: Any, images: Any, **options: Any) -> torch.Tensor:
    """Converts images to `pixel_values`.

    Args:
        image_processor:
            An image processor of transformers.
        images:
            Images as in `image_list`.
        **options:
            Options of the image processor.

    Returns:
        `torch.Tensor` of shape `(B, 3, H, W)`

    Raises:
        FileNotFoundError, ValueError: with the index of an image that cannot be used.
    """
    images = image_list(images)
    loaded = [_rgb(image, f"image {index}") for index, image in enumerate(images)]
    if not loaded:
        size = options.get("size") or image_processor.size
        return torch.zeros(0, 3, size["height"], size["width"])
    if not options.get("do_rescale", True) and any(_is_float(image) for image in images):
        # The option means that pixels in 0..1 need no rescaling, but here they have become 0..255.
        del options["do_rescale"]
    pixel_values: torch.Tensor = image_processor(images=loaded, return_tensors="pt", **options)["pixel_values"]
    return pixel_values


def image_list(images: Any) -> list[Any]:
    """Returns a list of images from an image, a list or tuple of images, or a batch of shape (B, ., ., .).

    An image is a path, an http(s) address, a PIL image, or a NumPy array or tensor of shape (H, W), (H, W, C) or
    (C, H, W) with 1, 3 or 4 channels, of uint8 or of floats in 0..1.
    """
    batch = getattr(images, "ndim", None) == 4
    return list(images) if batch else as_list(images)


def checked_pixels(pixel_values: torch.Tensor, tower: torch.nn.Module) -> torch.Tensor:
    """Returns pixels on the tower's device and in its number format. Raises ValueError for anything but pixels."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values of shape {tuple(pixel_values.shape)} and {pixel_values.dtype}: give floats (B, 3, H, W), "
            "the processor's pixel_values"
        )
    weight = next(tower.parameters())
    # Offloaded weights have no device of their own.
    return pixel_values.to(pixel_values.device if weight.is_meta else weight.device, weight.dtype)


def in_format(data: dict[str, torch.Tensor], return_tensors: str | None, device: Any) -> BatchFeature:
    """Returns a processor's output as tensors on `device` or as NumPy arrays; ValueError for another format."""
    if return_tensors not in (None, "pt", "np"):
        raise ValueError(f"return_tensors is {return_tensors!r}; give 'pt' or 'np'")
    if return_tensors == "np":
        return BatchFeature({name: values.numpy() for name, values in data.items()})
    return BatchFeature(data if device is None else {name: values.to(device) for name, values in data.items()})


def _rgb(image: Any, where: str) -> "Image.Image":
    """Returns a PIL image in RGB. Raises ValueError or FileNotFoundError whose message starts with `where`."""
    import numpy as np
    from PIL import Image, ImageOps

    try:
        if isinstance(image, Image.Image):
            return to_rgb(ImageOps.exif_transpose(image))
        if isinstance(image, (str, os.PathLike)):
            where = f"{where}, {os.fspath(image)[:200]}"
            return open_image(_downloaded(image) if _is_address(image) else image)
        if isinstance(image, torch.Tensor):
            image = image.detach().cpu()
            image = (image.float() if image.is_floating_point() else image).numpy()
        if isinstance(image, np.ndarray):
            return to_rgb(Image.fromarray(_channels_last(_eight_bits(image))))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{where}: no such image: restore the file or correct the path") from error
    except (ValueError, OSError, TypeError, RuntimeError) as error:
        raise ValueError(f"{where}: {' '.join(str(error).split())}") from error
    raise ValueError(f"{where}: of type {type(image).__name__}: give a path, a PIL image, a NumPy array or a tensor")


def _is_float(image: Any) -> bool:
    return getattr(image, "dtype", None) is not None and "float" in str(image.dtype)


def _is_address(image: Any) -> bool:
    return isinstance(image, str) and image.lower().startswith(("http://", "https://"))


def _downloaded(address: str) -> io.BytesIO:
    from http.client import HTTPException
    from urllib.request import urlopen

    try:
        with urlopen(address, timeout=TIMEOUT) as response:
            content = response.read(LARGEST_DOWNLOAD + 1)
    except HTTPException as error:
        raise ValueError(f"cannot be downloaded ({error!r})") from error
    if len(content) > LARGEST_DOWNLOAD:
        raise ValueError(f"more than {LARGEST_DOWNLOAD} bytes: download and scale it down")
    return io.BytesIO(content)


def _eight_bits(pixels: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Returns pixels as uint8, floats scaled from 0..1. Raises ValueError for pixels of another range."""
    import numpy as np

    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating):
        raise ValueError(f"pixels of type {pixels.dtype}: give uint8, or floats in 0..1")
    # NaN fails every comparison.
    if pixels.size and not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"pixels of {pixels.min():g} to {pixels.max():g}: give floats in 0..1, or uint8")
    return np.round(pixels.astype(np.float64) * 255).astype(np.uint8)


def _channels_last(pixels: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    """Returns an array in either order as (H, W) or (H, W, C), which PIL reads."""
    shape = pixels.shape
    if len(shape) not in (2, 3) or 0 in shape:
        raise ValueError(f"an array of shape {shape}: give (H, W), (H, W, C) or (C, H, W)")
    if len(shape) == 3:
        first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
        if first == last:
            axes = "both the first and the last could be" if first else "neither the first nor the last is"
            raise ValueError(f"an array of shape {shape}: {axes} the 1, 3 or 4 channels: give (H, W, C)")
        pixels = pixels.transpose(1, 2, 0) if first else pixels
        pixels = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    import numpy as np

    return np.ascontiguousarray(pixels)
