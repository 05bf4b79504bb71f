"""Person images on disk: which files are images, and opening them safely, each fault with its own message."""

import io
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from datasets import Dataset
from PIL import Image
from tqdm.auto import tqdm

from ..model import images as safe_images
from ..model.images import MAX_PIXELS, SUFFIXES
from ..utils.errors import UserError

logger = logging.getLogger(__name__)


# Folders and files that systems leave next to images, besides those that begin with a dot.
LITTER = frozenset(
    {"@eadir", "@recycle", "#recycle", "__macosx", "$recycle.bin", "system volume information", "lost+found"}
    | {"thumbs.db", "desktop.ini", "ehthumbs.db"}
)
NAMED_FILES = 5


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
    """The decoded image, RGB, upright by its EXIF orientation; the rules are those of `model.images.open_image`.

    Raises UserError naming the source where it is missing, truncated, no image, has more than `max_pixels` pixels, or
    pixels of more than 8 bits whose range is unknown.
    """
    name = source.name if isinstance(source, EmbeddedImage) else os.fspath(source)
    try:
        file = io.BytesIO(source.read()) if isinstance(source, EmbeddedImage) else source
        return safe_images.open_image(file, max_pixels=max_pixels)
    except FileNotFoundError as error:
        raise UserError(f"{name}: no such image: restore the file or correct the path") from error
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error


class ImageList(NamedTuple):
    """What a folder holds. names: its images, sorted, with forward slashes: regular files and links to such. left_out:
    what else a user may take for images, sorted: other files, broken links, and pipes, sockets and devices, which
    would hold up the one that opens them. hidden: how many files and folders of the system were passed over."""

    names: list[str]
    left_out: list[str]
    hidden: int

    def warn(self, folder: str | os.PathLike[str]) -> None:
        """Says how many files are no images that can be read, and names the first ones; nothing where there is none."""
        if self.left_out:
            more = ", ..." if len(self.left_out) > NAMED_FILES else ""
            shown = ", ".join(self.left_out[:NAMED_FILES])
            logger.warning("%s: %d files are left out, no images: %s%s", folder, len(self.left_out), shown, more)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name belongs to a system: it is never a person and never an image."""
    return name.startswith(".") or name.lower() in LITTER


def is_image_name(name: str) -> bool:
    """Whether a file name has an image's suffix, in any case, and is not hidden."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def list_images(folder: str | os.PathLike[str]) -> ImageList:
    """The images directly in a folder. Raises UserError where it cannot be listed."""
    return _listed((entry.name, entry) for entry in _entries(folder))


def list_image_tree(folder: str | os.PathLike[str]) -> ImageList:
    """The images under a folder and its sub-folders, by their paths relative to it.

    Folders behind symbolic links are not entered, as they may lead out or around. Raises UserError where a folder
    cannot be listed.
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
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise UserError(f"{os.fspath(folder)}: cannot be listed ({error.strerror}): give a readable folder") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or leads to one; a link that leads around is none."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it is a regular file or leads to one; a link that leads around is none."""
    return os.path.isfile(entry.path) if entry.is_symlink() else entry.is_file()


def _listed(found: Iterator[tuple[str, os.DirEntry[str]]]) -> ImageList:
    """Sorts (name, entry) into images, what is none, and what is hidden; folders are neither."""
    names: list[str] = []
    left_out: list[str] = []
    hidden = 0
    for name, entry in found:
        if is_hidden(entry.name):
            hidden += 1
        elif is_image_name(entry.name) and _is_file(entry):
            names.append(name)
        elif not _is_folder(entry):
            left_out.append(name)
    return ImageList(sorted(names), sorted(left_out), hidden)


def broken_images(sources: Sequence[ImageSource], *, threads: int = 8, max_pixels: int = MAX_PIXELS) -> dict[int, str]:
    """Decodes every image. Returns what is wrong with each that does not open, by its place among the sources."""

    def complaint(source: ImageSource) -> str | None:
        try:
            open_image(source, max_pixels=max_pixels)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        results = tqdm(
            pool.map(complaint, sources), total=len(sources), desc="checking images", unit="image", disable=None
        )
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
