"""Opens images safely: known formats, limited size, and every pixel type scaled to 8 bits or refused."""

import functools
import io
import os
import stat
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

# Pillow's name of a format, and the suffixes of its files. These decoders only read pixels. For some others,
# such as EPS, Pillow runs outside programs.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "PPM": (".ppm", ".pgm"),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
MAX_PIXELS = 50_000_000
# A file up to this size, in bytes, is read at once. Pillow reads a file in pieces, which takes a third of the time of a
# small crop.
SMALL_FILE = 2**20
# Of a resized crop.
LARGEST_SIDE = 4096
# Modes with one channel of more than 8 bits.
WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
LARGEST_16_BIT = 65_535


def open_image(file: str | os.PathLike[str] | IO[bytes], *, max_pixels: int = MAX_PIXELS) -> "Image":
    """Decodes an image to RGB and turns it upright by its EXIF orientation.

    Args:
        file (`str`, `os.PathLike` or binary file):
            An image in one of `FORMATS`; AVIF needs a Pillow that was built with it.
        max_pixels (`int`, *optional*, defaults to 50,000,000):
            Largest number of pixels, height times width.

    Returns:
        `PIL.Image.Image`: in mode "RGB"; the first frame of an animation.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is no image, has an unknown format, is truncated, or has too many pixels or pixels
            of unknown range (see `to_rgb`).
    """
    Image, ImageOps, _ = _pillow()
    try:
        # Never at reduced size (`draft`), which a JPEG allows: resized to 128 x 64, a crop of 384 x 192 pixels then
        # differs by up to 12 of 255.
        with Image.open(_readable(file), formats=_formats()) as image:
            # Pillow's own limit only warns, and a single thread cannot turn warnings into errors.
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {max_pixels}")
            ImageOps.exif_transpose(image, in_place=True)
            return to_rgb(image)
    except FileNotFoundError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"too large an image ({error}): scale it down or remove it") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"not an image of a known format ({_known()}): replace or remove it") from error
    except UnknownRange as error:
        raise ValueError(f"{error}: save it with 8 bits a channel") from error
    except Exception as error:  # decoders raise anything at broken bytes: OSError, SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(file, (str, os.PathLike)):
            # Pillow names the file by its repr, and the caller names it too.
            reason = reason.replace(repr(os.fspath(file)), "it")
        raise ValueError(f"broken image ({reason[:200]}): replace or remove it") from error


class UnknownRange(ValueError):
    """Pixels of more than 8 bits whose range cannot be known."""


def to_rgb(image: "Image") -> "Image":
    """Converts a Pillow image to 8-bit RGB. Pixels are scaled by their range and never clipped.

    16-bit pixels, which Pillow may hold in 32 bits, are divided by 257. Float pixels must be in 0..1 or in 0..255.

    Args:
        image (`PIL.Image.Image`):
            An image of any mode.

    Returns:
        `PIL.Image.Image`: in mode "RGB".

    Raises:
        UnknownRange: a ValueError, for other 32-bit pixels and for pixels that are not finite.
    """
    if image.mode not in WIDE_MODES:
        return image.convert("RGB")
    import numpy as np
    from PIL import Image as images

    pixels = np.asarray(image).astype(np.float64)
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    largest = LARGEST_16_BIT
    if image.mode == "F":
        largest = 1 if high <= 1 else 255
    # NaN fails every comparison.
    if not (low >= 0 and high <= largest):
        raise UnknownRange(f"pixels of {low:g} to {high:g} (mode {image.mode}) have no known range")
    return images.fromarray(np.round(pixels * (255 / largest)).astype(np.uint8)).convert("RGB")


def _readable(file: str | os.PathLike[str] | IO[bytes]) -> str | os.PathLike[str] | IO[bytes]:
    """Returns what Pillow reads: the content of a small file, or the file. Raises OSError for a folder or a pipe."""
    if not isinstance(file, (str, os.PathLike)):
        return file
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a file")  # reading from a pipe would wait forever
    if found.st_size > SMALL_FILE:
        return file
    with open(file, "rb", buffering=0) as opened:
        return io.BytesIO(opened.read())


@functools.cache
def _pillow() -> tuple[Any, Any, Any]:
    """Returns Pillow's modules `Image`, `ImageOps` and `features`.

    Inside a function: at its top level a checkpoint's code may import only torch and transformers. Only once: the
    import statements of a call take a tenth of the time of a small crop.
    """
    from PIL import (
        Image,
        ImageOps,
        TiffImagePlugin,  # noqa: F401  (registers its format: Pillow does not do it for a list of formats)
        WebPImagePlugin,  # noqa: F401
        features,
    )

    return Image, ImageOps, features


def _formats() -> list[str]:
    features = _pillow()[2]
    # An older Pillow warns about a feature that it does not know.
    avif = "avif" in features.modules and features.check("avif")
    return [name for name in FORMATS if name != "AVIF" or avif]


def _known() -> str:
    return ", ".join(name.lower() for name in _formats())
