"""File names that contain the person and the camera: folders, paths, patterns, and the numbers in names."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from ...utils.errors import UserError
from ..contract import UNKNOWN_CAMERA, Problems, is_utf8
from ..images import is_image_name, list_images

MAX_DIGITS = 18  # every number with this many digits fits into int64


class SpelledNumbers:
    """Converts the person or camera numbers of one data set, and refuses two spellings of one number.

    Args:
        kind (`str`): "person" or "camera", for messages.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._first: dict[int, tuple[str, str]] = {}

    def read(self, digits: str, where: str) -> int:
        """Converts the digits to a number. where: the file or the line, for messages.

        Raises UserError for a number with too many digits, and for another spelling than before.
        """
        if len(digits.lstrip("-")) > MAX_DIGITS:
            raise UserError(
                f"{where}: {self.kind} {digits[:30]} has more than {MAX_DIGITS} digits: give a smaller number"
            )
        number = int(digits)
        spelling, first = self._first.setdefault(number, (digits, where))
        if spelling != digits:
            raise UserError(
                f"{where}: {self.kind} {digits} is another spelling of {self.kind} {spelling} in {first}: "
                f"use one spelling for one {self.kind}, and another number for another {self.kind}"
            )
        return number


DRIVE = re.compile(r"[A-Za-z]:")


class DataFolder:
    """Checks the paths of a list against the files in a folder.

    The folder itself may be a symbolic link, but no path may leave it. Each sub-folder is scanned once, at its first
    use.

    Args:
        root (`str` or `os.PathLike`): the folder.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)
        self._real_root = os.path.realpath(root)
        self._files: dict[str, frozenset[str]] = {}
        self._outside_links: set[str] = set()

    def relative(self, listed: str) -> str:
        """Normalises a path of a list to a path relative to the folder, with forward slashes.

        Backslashes separate folders too. The file need not exist.
        Raises UserError for an empty or absolute path, for "..", for a symbolic link that leaves the folder, and for a
        folder that cannot be read.
        """
        names = [name for name in listed.replace("\\", "/").split("/") if name not in ("", ".")]
        absolute = listed[:1] in ("/", "\\") or (names and DRIVE.match(names[0]))
        if not names or absolute or ".." in names or "\0" in listed or not is_utf8(listed):
            raise UserError(
                f"path {listed!r} is not inside the data folder {self.root}: give a path relative to that folder"
            )
        path = "/".join(names)
        self._files_of("/".join(names[:-1]))
        if path in self._outside_links:
            raise self._outside_error(path)
        return path

    def has(self, name: str) -> bool:
        """Returns whether a file of this name exists. name: a path as `relative` returns it."""
        folder, _, last = name.rpartition("/")
        # On a case-insensitive file system, a file also has names that the folder does not list.
        return last in self._files_of(folder) or os.path.isfile(os.path.join(self.root, name))

    def _files_of(self, folder: str) -> frozenset[str]:
        """Returns the names of the files in a sub-folder; none if it does not exist."""
        if folder not in self._files:
            if self._is_outside(folder):
                raise self._outside_error(folder)
            try:
                self._files[folder] = frozenset(self._scan(folder))
            except (FileNotFoundError, NotADirectoryError):
                self._files[folder] = frozenset()
            except OSError as error:
                where = self.root / folder
                raise UserError(f"{where}: cannot be read ({error.strerror}): make the folder readable") from error
        return self._files[folder]

    def _scan(self, folder: str) -> list[str]:
        """Lists the files of a sub-folder, and remembers the links that leave the folder."""
        names = []
        with os.scandir(os.path.join(self.root, folder)) as entries:
            for entry in entries:
                if not entry.is_symlink():
                    is_file = entry.is_file()
                else:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if self._is_outside(name):
                        self._outside_links.add(name)
                    is_file = os.path.isfile(entry.path)  # False for a circular link
                if is_file:
                    names.append(entry.name)
        return names

    def _is_outside(self, name: str) -> bool:
        """Returns whether a path leaves the folder through a symbolic link."""
        real = os.path.realpath(os.path.join(self.root, name))
        return real != self._real_root and not real.startswith(os.path.join(self._real_root, ""))

    def _outside_error(self, name: str) -> UserError:
        """Returns the error of a path that leaves the folder."""
        return UserError(
            f"path {name!r} leaves the data folder {self.root} by a symbolic link: put the file itself there"
        )


def shown_path(path: str) -> str:
    """Returns a path in one line, for a message."""
    return path if path.isprintable() else repr(path)


# Published names end in `.jpg` or `.jpg.jpg`, and those of some copies in `.JPG`.
JPG, PNG, BMP = r"(?i:\.jpe?g)+", r"(?i:\.png)+", r"(?i:\.bmp)+"


class NamedImage(NamedTuple):
    """An image and who is on it. file_name: relative to the data folder, with forward slashes."""

    file_name: str
    person_id: int
    camera_id: int


class FileNames:
    """Parses the file names of one data set.

    Args:
        name (`re.Pattern`): the pattern of a file name, with the group `person`, and `camera` if names contain it.
        example (`str`): a file name for messages.
        problems (`Problems`): collects the images with another name.
    """

    def __init__(self, name: re.Pattern[str], example: str, problems: Problems):
        self.name = name
        self.example = example
        self.problems = problems
        self.persons, self.cameras = SpelledNumbers("person"), SpelledNumbers("camera")

    def read(self, root: Path, folder: str) -> list[NamedImage]:
        """Returns the images directly in a folder of `root`, sorted by name; other files are ignored.

        Raises UserError for a folder that cannot be read. An image is a problem if its name does not match, or if it
        spells the number of a person or camera in another way than a previous image.
        """
        images = []
        for name in image_names(root / folder, self.problems):
            try:
                person_id, camera_id = self._parse(name, f"{root / folder}/{name}")
            except UserError as problem:
                self.problems.report(problem)
                continue
            images.append(NamedImage(name if folder == "." else f"{folder}/{name}", person_id, camera_id))
        return images

    def _parse(self, name: str, path: str) -> tuple[int, int]:
        """Returns the person and the camera in a file name."""
        match = self.name.fullmatch(name)
        if match is None:
            raise UserError(f"{shown_path(path)}: not a name like {self.example}: rename the file or move it away")
        groups = match.groupdict()
        camera_id = self.cameras.read(groups["camera"], path) if "camera" in groups else UNKNOWN_CAMERA
        return self.persons.read(groups["person"], path), camera_id


def image_names(folder: Path, problems: Problems) -> list[str]:
    """Returns the names of the images directly in a folder, sorted.

    A name that is not UTF-8 is a problem, and so is the name of an image that is not a file.
    """
    names = []
    images = list_images(folder)
    for name in filter(is_image_name, images.left_out):
        path = shown_path(f"{folder}/{name}")
        problems.report(UserError(f"{path}: not a file, or a broken link: restore the image or remove the name"))
    for name in images.names:
        if is_utf8(name):
            names.append(name)
        else:
            problems.report(UserError(f"{folder}: the file name {name!r} is not UTF-8: rename the file"))
    return names
