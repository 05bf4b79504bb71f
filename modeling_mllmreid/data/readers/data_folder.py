"""Paths that a list or a captions file names: held inside the data folder, looked up in one scan of each folder."""

import os
import re
from pathlib import Path

from ...errors import UserError
from ..columns import is_utf8

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
