"""Images whose file names say who is on them: one way to list a folder, to parse its names and to number people."""

import re
from pathlib import Path
from typing import NamedTuple

from ...errors import UserError
from ..columns import UNKNOWN_CAMERA, is_utf8
from ..images import is_image_name, list_images
from ..problems import Problems
from .data_folder import shown_path
from .spelled_numbers import SpelledNumbers

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
