"""Person images on disk: finds the image files of a folder and opens images safely."""

import io
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from PIL import Image
from tqdm.auto import tqdm

from ..model import images as safe_images
from ..model.images import MAX_PIXELS, SUFFIXES
from ..utils.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Folders and files that operating systems add next to images. Names that begin with a dot are hidden too.
SYSTEM_FILES = frozenset(
    {"@eadir", "@recycle", "#recycle", "__macosx", "$recycle.bin", "system volume information", "lost+found"}
    | {"thumbs.db", "desktop.ini", "ehthumbs.db"}
)
NAMED_FILES = 5
# Files that `load_reid_dataset` may write into a folder of images.
OWN_FILES = ("splits.json", "skipped.txt")


@dataclass(frozen=True, eq=False)
class EmbeddedImage:
    """An image whose bytes are in the table of a data set. They are read when the image is opened.

    Args:
        dataset (`Dataset`): the data set, with a column `image` that is not decoded.
        index (`int`): the row.
        name (`str`): the file name for messages.
    """

    dataset: "Dataset"
    index: int
    name: str

    def read(self) -> bytes:
        """Returns the encoded bytes."""
        content: bytes = self.dataset[self.index]["image"]["bytes"]
        return content


ImageSource = str | os.PathLike[str] | EmbeddedImage


def open_image(source: ImageSource | Image.Image, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes an image with the rules of `model.images.open_image`.

    Args:
        source (`str`, `os.PathLike`, `EmbeddedImage` or `PIL.Image.Image`): the path of a file, an image in a table, or
            an open image.
        max_pixels (`int`): the largest accepted width x height.

    Returns:
        `Image.Image`: RGB, rotated by its EXIF orientation.

    Raises:
        UserError: the image is missing, truncated, not an image or too large, or its pixels have more than 8 bits and
            an unknown range. The message names the source.
    """
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", None) or "image")
    else:
        name = source.name if isinstance(source, EmbeddedImage) else os.fspath(source)
    try:
        if isinstance(source, Image.Image):
            return safe_images.to_rgb(source)
        file = io.BytesIO(source.read()) if isinstance(source, EmbeddedImage) else source
        return safe_images.open_image(file, max_pixels=max_pixels)
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such image: restore the file or correct the path") from error
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


class ImageList(NamedTuple):
    """The content of a folder.

    Args:
        names (`list[str]`): the sorted names of its images, with forward slashes: regular files and links to them.
        left_out (`list[str]`): the sorted names of all other files: broken links, and pipes, sockets and devices, which
            would block a reader, included.
        hidden (`int`): the number of hidden files and folders.
    """

    names: list[str]
    left_out: list[str]
    hidden: int

    def warn(self, folder: str | os.PathLike[str]) -> None:
        """Logs a warning with the number and the first names of the files that are not images, if there are any."""
        if self.left_out:
            more = ", ..." if len(self.left_out) > NAMED_FILES else ""
            shown = ", ".join(self.left_out[:NAMED_FILES])
            logger.warning("%s: %d files are not images and left out: %s%s", folder, len(self.left_out), shown, more)


def is_hidden(name: str) -> bool:
    """Returns whether a file or folder is hidden or belongs to an operating system, so that no reader uses it."""
    return name.startswith(".") or name.lower() in SYSTEM_FILES


def is_image_name(name: str) -> bool:
    """Returns whether a file name has the suffix of an image, in upper or lower case, and is not hidden."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def list_images(folder: str | os.PathLike[str]) -> ImageList:
    """Lists the images directly in a folder. Raises UserError if it cannot be listed."""
    return _listed((entry.name, entry) for entry in _entries(folder))


def list_image_tree(folder: str | os.PathLike[str]) -> ImageList:
    """Lists the images in a folder and its sub-folders.

    Symbolic links to folders are not followed, because they may leave the folder or form a circle.

    Args:
        folder (`str` or `os.PathLike`): the folder.

    Returns:
        `ImageList`: the names are paths relative to the folder.

    Raises:
        UserError: a folder cannot be listed.
    """
    root = Path(folder)

    def walk(below: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        for entry in _entries(root / below):
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name):
                yield from walk(name)
            else:
                yield name, entry

    return _listed(walk(""))


def _entries(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder. Raises UserError if it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{os.fspath(folder)}: cannot be listed ({error.strerror}): give a readable folder") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Returns whether the entry is a folder or a link to one; False for a circular link."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Returns whether the entry is a regular file or a link to one; False for a circular link."""
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _listed(entries: Iterator[tuple[str, os.DirEntry[str]]]) -> ImageList:
    """Divides (name, entry) pairs into images, other files and hidden ones; folders are ignored."""
    names: list[str] = []
    left_out: list[str] = []
    hidden = 0
    for name, entry in entries:
        if is_hidden(entry.name):
            hidden += 1
        elif is_image_name(entry.name) and _is_file(entry):
            names.append(name)
        elif not _is_folder(entry):
            left_out.append(name)
    return ImageList(sorted(names), sorted(left_out), hidden)


def broken_images(sources: Sequence[ImageSource], *, threads: int = 8, max_pixels: int = MAX_PIXELS) -> dict[int, str]:
    """Decodes every image and returns the error messages.

    Args:
        sources (`Sequence[ImageSource]`): the images.
        threads (`int`, defaults to 8): the number of threads.
        max_pixels (`int`): the largest accepted width x height.

    Returns:
        `dict[int, str]`: the index of each image that does not open -> its error message.
    """

    def error_message(source: ImageSource) -> str | None:
        try:
            open_image(source, max_pixels=max_pixels)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        messages = tqdm(
            pool.map(error_message, sources), total=len(sources), desc="checking images", unit="image", disable=None
        )
        return {index: message for index, message in enumerate(messages) if message is not None}


def check_images(sources: Sequence[ImageSource], *, shown: int = 5, **options: int) -> None:
    """Decodes every image before a run starts, so that a broken one does not stop it after hours.

    Args:
        sources (`Sequence[ImageSource]`): the images.
        shown (`int`, defaults to 5): the number of error messages in the exception.
        **options: the keyword arguments of `broken_images`.

    Raises:
        UserError: images do not open. The message gives their number and the first errors.
    """
    broken = list(broken_images(sources, **options).values())
    if broken:
        more = f"; and {len(broken) - shown} more" if len(broken) > shown else ""
        raise UserError(f"{len(broken)} of {len(sources)} images cannot be used: {'; '.join(broken[:shown])}{more}")


def safe_join(root: str | os.PathLike[str], relative: str) -> Path:
    """Joins a folder and a relative path from a file, and refuses every path outside the folder.

    Args:
        root (`str` or `os.PathLike`): the data folder.
        relative (`str`): a path with forward slashes.

    Returns:
        `Path`: root / relative.

    Raises:
        UserError: the path is empty or absolute, contains "..", or leaves the folder through a symbolic link.
    """
    names = PurePosixPath(relative).parts
    if not names or names[0] == "/" or ".." in names or "\0" in relative:
        raise UserError(f"path {relative!r} is not inside the data folder {root}: give a path relative to that folder")
    path = Path(root, *names)
    if not path.resolve().is_relative_to(Path(root).resolve()):
        raise UserError(
            f"path {relative!r} leaves the data folder {root} by a symbolic link: put the file itself there"
        )
    return path
