"""Opening person images safely: every broken file, and every path that leaves the data folder, has its own message."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from datasets import Dataset
from PIL import (
    Image,
    ImageOps,
    TiffImagePlugin,  # noqa: F401  (registers its format, which Pillow does lazily, and not for a list of formats)
    WebPImagePlugin,  # noqa: F401
)
from tqdm.auto import tqdm

from ..errors import UserError

# Decoders that only read pixels: Pillow would hand some other formats to outside programs.
FORMATS = ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 50_000_000


@dataclass(frozen=True, eq=False)
class EmbeddedImage:
    """An image whose bytes lie in a data set's own table (a saved or published one), read only when it is opened.

    rows: the data set, its `image` column not decoded. index: the row. name: what messages call it.
    """

    rows: Dataset
    index: int
    name: str

    def read(self) -> bytes:
        """The encoded bytes."""
        return self.rows[self.index]["image"]["bytes"]


ImageSource = str | os.PathLike[str] | EmbeddedImage


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The decoded image, RGB, upright by its EXIF orientation.

    Raises UserError naming the source where it is missing, truncated, no image, or has more than `max_pixels` pixels.
    """
    name = source.name if isinstance(source, EmbeddedImage) else os.fspath(source)
    try:
        file = io.BytesIO(source.read()) if isinstance(source, EmbeddedImage) else source
        with Image.open(file, formats=FORMATS) as image:
            # Pillow's own limit only warns, and warnings cannot be made errors in one thread alone.
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, more than {max_pixels}")
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such image: restore the file or mend the path") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name}: too large an image ({error}): scale it down or remove it") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{name}: not an image of a known format: replace or remove it") from error
    except Exception as error:  # broken bytes raise whatever the decoder met: OSError, SyntaxError, struct.error, ...
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: broken image ({reason}): replace or remove it") from error


def broken_images(sources: Sequence[ImageSource], *, threads: int = 8, max_pixels: int = MAX_PIXELS) -> dict[int, str]:
    """Decodes every image. Returns what is wrong with each that does not open, by its place among the sources."""

    def complaint(source: ImageSource) -> str | None:
        try:
            open_image(source, max_pixels=max_pixels)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        results = tqdm(pool.map(complaint, sources), total=len(sources), desc="checking images", unit="image")
        return {place: text for place, text in enumerate(results) if text is not None}


def check_images(sources: Sequence[ImageSource], *, shown: int = 5, **options: int) -> None:
    """Decodes every image, so that a broken one stops a run before its first step and not after hours.

    Raises one UserError: the number of broken images and what is wrong with the first `shown` of them. options: those
    of `broken_images`.
    """
    broken = list(broken_images(sources, **options).values())
    if broken:
        more = f"; and {len(broken) - shown} more" if len(broken) > shown else ""
        raise UserError(f"{len(broken)} of {len(sources)} images cannot be used: {'; '.join(broken[:shown])}{more}")


def safe_join(root: str | os.PathLike[str], relative: str) -> Path:
    """`root / relative` for a path that was read from a file: nothing outside `root` is ever reached.

    Raises UserError for an empty or absolute path, for "..", and for symbolic links that lead out of `root`.
    """
    parts = PurePosixPath(relative).parts
    if not parts or parts[0] == "/" or ".." in parts or "\0" in relative:
        raise UserError(f"path {relative!r} is not inside the data folder {root}: give a path relative to that folder")
    path = Path(root, *parts)
    if not path.resolve().is_relative_to(Path(root).resolve()):
        raise UserError(
            f"path {relative!r} leaves the data folder {root} by a symbolic link: put the file itself there"
        )
    return path
