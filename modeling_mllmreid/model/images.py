"""The one safe way to open a picture: known formats, bounded size, every pixel type scaled to 8 bits or refused."""

import os
import stat

# Pillow's name of a format -> the suffixes of its files. Decoders that only read pixels: Pillow would hand some other
# formats (EPS, for one) to outside programs.
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
# Modes of more than 8 bits a channel, of one channel each.
WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
LARGEST_16_BIT = 65_535


def open_image(file, *, max_pixels: int = MAX_PIXELS):
    """The decoded picture as RGB, upright by its EXIF orientation; of an animation the first frame.

    file: a path, or an open file of bytes. Formats are those of `FORMATS`, AVIF where Pillow was built with it.
    Raises FileNotFoundError where there is none, and ValueError with one line where it is no picture, of an unknown
    format, truncated, of more than `max_pixels` pixels, or of pixels whose range is unknown (`to_rgb`).
    """
    # Inside the function: a checkpoint's code may name torch and transformers alone at its top level.
    from PIL import (
        Image,
        ImageOps,
        TiffImagePlugin,  # noqa: F401  (registers its format, which Pillow does lazily, and not for a list of formats)
        WebPImagePlugin,  # noqa: F401
    )

    try:
        if isinstance(file, (str, os.PathLike)) and os.path.exists(file) and not os.path.isfile(file):
            raise OSError("not a file")  # reading from a pipe would wait for ever
        if isinstance(file, (str, os.PathLike)) and not stat.S_ISREG(os.stat(file).st_mode):
            raise OSError("a folder, a pipe or a device")
        with Image.open(file, formats=_formats()) as image:
            # Pillow's own limit only warns, and warnings cannot be made errors in one thread alone.
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {max_pixels}")
            return to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"too large an image ({error}): scale it down or remove it") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"not an image of a known format ({_known()}): replace or remove it") from error
    except UnknownRange as error:
        raise ValueError(f"{error}: save it with 8 bits a channel") from error
    except Exception as error:  # broken bytes raise whatever the decoder met: OSError, SyntaxError, struct.error, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(file, (str, os.PathLike)):
            # Pillow names the file by its repr; the caller names it as well.
            reason = reason.replace(repr(os.fspath(file)), "it")
        raise ValueError(f"broken image ({reason[:200]}): replace or remove it") from error


class UnknownRange(ValueError):
    """Pixels of more than 8 bits whose range cannot be known."""


def to_rgb(image):
    """A Pillow image as 8-bit RGB, its pixels scaled by their range and never clipped.

    16-bit pixels, also where Pillow holds them in 32 bits, are divided by 257; float pixels must lie in 0..1 or in
    0..255. Raises UnknownRange (a ValueError) for other 32-bit pixels and for numbers that are not finite.
    """
    if image.mode not in WIDE_MODES:
        return image.convert("RGB")
    import numpy as np
    from PIL import Image

    pixels = np.asarray(image).astype(np.float64)
    low, high = (float(pixels.min()), float(pixels.max())) if pixels.size else (0.0, 0.0)
    largest = LARGEST_16_BIT
    if image.mode == "F":
        largest = 1 if high <= 1 else 255
    # NaN fails every comparison.
    if not (low >= 0 and high <= largest):
        raise UnknownRange(f"pixels of {low:g} to {high:g} (mode {image.mode}) have no known range")
    return Image.fromarray(np.round(pixels * (255 / largest)).astype(np.uint8)).convert("RGB")


def _formats() -> list:
    from PIL import features

    # An older Pillow warns of a feature that it does not know.
    avif = "avif" in features.modules and features.check("avif")
    return [name for name in FORMATS if name != "AVIF" or avif]


def _known() -> str:
    return ", ".join(name.lower() for name in _formats())
