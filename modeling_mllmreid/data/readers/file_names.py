"""Images whose file names say who is on them: folders, paths, names, and the numbers that names spell."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from ...utils.errors import UserError
from ..contract import UNKNOWN_CAMERA, Problems, is_utf8
from ..images import is_image_name, list_images

MAX_DIGITS = 18  # every number of so many digits fits the columns' int64


class SpelledNumbers:
    """The persons or the cameras of one set, each of which all its names have to spell the same way.

    what: "person" or "camera", for the messages.
    """

    def __init__(self, what: str):
        self.what = what
        self._first: dict[int, tuple[str, str]] = {}

    def read(self, digits: str, where: str) -> int:
        """The number. where: the file or the line that spells it.

        Raises UserError for a number of too many digits, and for another spelling than before, naming both places.
        """
        if len(digits.lstrip("-")) > MAX_DIGITS:
            raise UserError(
                f"{where}: {self.what} {digits[:30]} has more than {MAX_DIGITS} digits: give a smaller number"
            )
        number = int(digits)
        spelling, first = self._first.setdefault(number, (digits, where))
        if spelling != digits:
            raise UserError(
                f"{where}: {self.what} {digits} is the number of {self.what} {spelling} in {first}, spelled otherwise: "
                f"spell one {self.what} one way, and give another {self.what} another number"
            )
        return number


DRIVE = re.compile(r"[A-Za-z]:")


class DataFolder:
    """The files under a folder, for as many names as a list has.

    The folder itself may be reached by symbolic links; below it nothing that leads out of it is ever opened. Each of
    its folders is resolved and scanned once, when the first name in it is asked for.
    """

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)
        self._real_root = os.path.realpath(root)
        self._files: dict[str, frozenset[str]] = {}
        self._leading_out: set[str] = set()

    def relative(self, listed: str) -> str:
        """The path of a list, relative to the folder, with forward slashes; whether the file is there is not asked.

        Backslashes separate folders as slashes do. Raises UserError for an empty or absolute path, for "..", for
        symbolic links that lead out of the folder, and for a folder that cannot be read.
        """
        parts = [part for part in listed.replace("\\", "/").split("/") if part not in ("", ".")]
        absolute = listed[:1] in ("/", "\\") or (parts and DRIVE.match(parts[0]))
        if not parts or absolute or ".." in parts or "\0" in listed or not is_utf8(listed):
            raise UserError(
                f"path {listed!r} is not inside the data folder {self.root}: give a path relative to that folder"
            )
        name = "/".join(parts)
        self._scanned("/".join(parts[:-1]))
        if name in self._leading_out:
            raise self._leads_out(name)
        return name

    def has(self, name: str) -> bool:
        """Whether there is a file of this name, as `relative` gives it."""
        folder, _, last = name.rpartition("/")
        # A file system that ignores the letters' case has more names than it lists.
        return last in self._scanned(folder) or os.path.isfile(os.path.join(self.root, name))

    def _scanned(self, folder: str) -> frozenset[str]:
        """The names of the files in one of the folders, none where there is no such folder."""
        if folder not in self._files:
            if self._is_outside(folder):
                raise self._leads_out(folder)
            try:
                self._files[folder] = frozenset(self._scan(folder))
            except (FileNotFoundError, NotADirectoryError):
                self._files[folder] = frozenset()
            except OSError as error:
                where = self.root / folder
                raise UserError(f"{where}: cannot be read ({error.strerror}): make the folder readable") from error
        return self._files[folder]

    def _scan(self, folder: str) -> list[str]:
        names = []
        with os.scandir(os.path.join(self.root, folder)) as entries:
            for entry in entries:
                if not entry.is_symlink():
                    is_file = entry.is_file()
                else:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if self._is_outside(name):
                        self._leading_out.add(name)
                    is_file = os.path.isfile(entry.path)  # no error for links that lead around
                if is_file:
                    names.append(entry.name)
        return names

    def _is_outside(self, name: str) -> bool:
        real = os.path.realpath(os.path.join(self.root, name))
        return real != self._real_root and not real.startswith(os.path.join(self._real_root, ""))

    def _leads_out(self, name: str) -> UserError:
        return UserError(
            f"path {name!r} leaves the data folder {self.root} by a symbolic link: put the file itself there"
        )


def shown_path(path: str) -> str:
    """A path as one line of a message."""
    return path if path.isprintable() else repr(path)


# Published names end in `.jpg`, some in `.jpg.jpg`, and those of copies in `.JPG`.
JPG, PNG, BMP = r"(?i:\.jpe?g)+", r"(?i:\.png)+", r"(?i:\.bmp)+"


class NamedImage(NamedTuple):
    """An image and who is on it. file_name: relative to the data folder, with forward slashes."""

    file_name: str
    person_id: int
    camera_id: int


class FileNames:
    """Parses the names of one set, whose persons and cameras are each spelled one way.

    name: the whole file name, with the group `person` and, where names say it, `camera`. example: one such name.
    problems: where an image of another name goes.
    """

    def __init__(self, name: re.Pattern[str], example: str, problems: Problems):
        self.name = name
        self.example = example
        self.problems = problems
        self.persons, self.cameras = SpelledNumbers("person"), SpelledNumbers("camera")

    def read(self, root: Path, folder: str) -> list[NamedImage]:
        """The images directly in a folder of `root`, sorted by name.

        Other files and what systems leave are passed over. Raises UserError for a folder that cannot be read, and,
        unless problems are skipped, for an image of another name and one whose person or camera another image spells
        otherwise.
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
        match = self.name.fullmatch(name)
        if match is None:
            raise UserError(f"{shown_path(path)}: not a name like {self.example}: rename the file or move it away")
        groups = match.groupdict()
        camera_id = self.cameras.read(groups["camera"], path) if "camera" in groups else UNKNOWN_CAMERA
        return self.persons.read(groups["person"], path), camera_id


def image_names(folder: Path, problems: Problems) -> list[str]:
    """The images directly in a folder, sorted.

    A name that cannot be stored as text is a problem, as is an image's name for what is no file.
    """
    names = []
    images = list_images(folder)
    for name in filter(is_image_name, images.left_out):
        path = shown_path(f"{folder}/{name}")
        problems.report(UserError(f"{path}: no file, or a broken link: restore the image or remove the name"))
    for name in images.names:
        if is_utf8(name):
            names.append(name)
        else:
            problems.report(UserError(f"{folder}: the file name {name!r} is not UTF-8: rename the file"))
    return names
