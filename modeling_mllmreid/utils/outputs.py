"""Writing files: nothing of another program is replaced, no file is half-written, only its owner reads it."""

import errno
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import UserError
from .formats import is_known_json

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

# Loading processes of a killed run hold its lock until they notice that it has ended, which takes 5 seconds.
PATIENCE = 30.0


def try_lock(path: Path) -> int | None:
    """Locks a file or folder and returns the descriptor that holds the lock until it is closed.

    Returns None if another process holds the lock, or the file does not exist. Without `flock` nothing is locked.
    Raises OSError if the file cannot be opened.
    """
    try:
        number = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        import fcntl

        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        os.close(number)
        return None
    return number


@contextmanager
def only_writer(path: Path, *, what: str) -> Iterator[None]:
    """Keeps other processes from writing to an existing file, or to a folder, which is created if it is missing.

    The processes of a killed launcher continue; a second run of the same command would mix its results with theirs.
    `what` names the work in the message. Raises UserError if another process still writes after `PATIENCE` seconds.
    """
    if not path.exists():
        path.mkdir(mode=0o700, parents=True)
    deadline = time.monotonic() + PATIENCE
    while (number := try_lock(path)) is None:
        if time.monotonic() > deadline:
            raise UserError(
                f"{path}: another {what} writes there: wait until it has ended, end it (a killed launcher leaves its "
                "processes behind), or give another path"
            )
        time.sleep(0.2)
    try:
        yield
    finally:
        os.close(number)


AnyPath = str | os.PathLike[str]
# The text chunk that identifies our pictures: `image.save(path, pnginfo=png_info())`.
PNG_SOFTWARE = "mllmreid"
REMEDY = "give another path"


# ---- checks before the work ----------------------------------------------------------------------------------------


def check_output(
    path: AnyPath,
    *,
    ours: Callable[[Path], bool] | None = None,
    inputs: Sequence[AnyPath] = (),
    needs_bytes: int = 0,
) -> None:
    """Checks, before long work, that a file can be written and that nothing of another program is replaced.

    Args:
        path (`str` or `os.PathLike`): the output.
        ours (`Callable`, *optional*): returns whether an existing file may be replaced; by default `is_ours`.
        inputs (`Sequence[str | os.PathLike]`): files that are read; none of them may be the output.
        needs_bytes (`int`, defaults to 0): free space that the output needs.

    Raises:
        UserError: if the output is a folder, a device, a link, an input or a foreign file, or cannot be written.
    """
    path = Path(path)
    _check_kind(path, inputs)
    if _exists(path) and not (ours or is_ours)(path):
        raise UserError(f"output {path}: exists and was not written by this program: move it away or {REMEDY}")
    _check_writable(path, needs_bytes)


def check_output_folder(folder: AnyPath, *, inputs: Sequence[AnyPath] = (), needs_bytes: int = 0) -> None:
    """Checks, before long work, that a new folder can be written: it does not exist or is empty.

    The folder may not be inside a folder that is read (`inputs`). Raises UserError as `check_output`.
    """
    folder = Path(folder)
    _check_name(folder)
    if folder.is_symlink():
        raise UserError(f"output {folder}: is a symbolic link: {REMEDY}")
    if _exists(folder) and not folder.is_dir():
        raise UserError(f"output {folder}: is a file, not a folder: {REMEDY}")
    if _exists(folder) and any(folder.iterdir()):
        raise UserError(f"output {folder}: exists and is not empty: remove it or {REMEDY}")
    for source in map(Path, inputs):
        if source.is_dir() and folder.resolve().is_relative_to(source.resolve()):
            raise UserError(f"output {folder}: lies inside {source}, which is read: {REMEDY}")
    _check_writable(folder, needs_bytes)


def is_ours(path: AnyPath) -> bool:
    """Returns whether this program may replace a file, by its content.

    Our pictures contain our name, and our JSON files fit one of our formats. An empty file may be replaced.
    """
    path = Path(path)
    if path.stat().st_size == 0:
        return True
    if path.suffix.lower() == ".png":
        return _png_software(path) == PNG_SOFTWARE
    return path.suffix.lower() == ".json" and is_known_json(path)


def png_info() -> "PngInfo":
    """Returns the `pnginfo` argument of `PIL.Image.save` that identifies our pictures."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", PNG_SOFTWARE)
    return info


# ---- writing -------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_file(path: AnyPath, *, inputs: Sequence[AnyPath] = ()) -> Iterator[Path]:
    """Yields a new file next to `path` that replaces `path` after the block; on an error it is removed.

    Only its owner can read the file. `check_output` decides what may be replaced; a folder, a device, a symbolic link
    and an input never are. Raises UserError for these, and if the disk is full or read-only.
    """
    path = Path(path)
    _check_kind(path, inputs)
    with new_parents(path), refused_by_disk(path):
        number, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
        os.close(number)
        aside = Path(name)
        try:
            yield aside
            os.chmod(aside, stat.S_IRUSR | stat.S_IWUSR)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: AnyPath, *, inputs: Sequence[AnyPath] = ()) -> Iterator[Path]:
    """Yields a new folder next to `folder` that becomes `folder` after the block.

    Each writer has its own new folder, and the first to finish wins. On an error the new folder is removed; those of
    killed writers are removed at the next start. Only their owner can read the files. Raises UserError if `folder` is
    not empty, before or after the block, and if the disk is full or read-only.
    """
    folder = Path(folder)
    check_output_folder(folder, inputs=inputs)
    with new_parents(folder), refused_by_disk(folder), owner_only():
        aside, lock = _locked_folder(folder)
        try:
            yield aside
            try:
                os.rename(aside, folder)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise UserError(f"output {folder}: another run wrote it meanwhile: {REMEDY}") from error
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            os.close(lock)


@contextmanager
def scratch_folder(folder: AnyPath) -> Iterator[Path]:
    """Gives a new folder next to `folder`, removed after the block; what killed runs left of it is removed first."""
    folder = Path(folder)
    with new_parents(folder), refused_by_disk(folder), owner_only():
        scratch, lock = _locked_folder(folder)
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            os.close(lock)


@contextmanager
def owner_only() -> Iterator[None]:
    """Makes new files and folders readable only by their owner, including those of libraries."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def new_parents(path: Path) -> Iterator[None]:
    """Creates the missing parent folders of `path`; removes them again if the block fails."""
    missing = [parent for parent in path.absolute().parents if not parent.exists()]
    made: list[Path] = []
    try:
        with refused_by_disk(path):
            for parent in reversed(missing):
                parent.mkdir(mode=0o700, exist_ok=True)
                made.append(parent)
        yield
    except BaseException:
        for parent in reversed(made):
            try:
                parent.rmdir()
            except OSError:  # another process has written into it
                break
        raise


@contextmanager
def refused_by_disk(path: AnyPath) -> Iterator[None]:
    """Converts the errors of a full, missing or read-only disk to a UserError that names `path`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Libraries that write from another language raise errors of their own.
        full = "No space left" in str(error)
        if not (full or isinstance(error, OSError)) or (isinstance(error, OSError) and not _is_of(error, Path(path))):
            raise
        reason = "no space left on the disk" if full else (getattr(error, "strerror", None) or str(error))
        raise UserError(f"output {path}: cannot be written ({reason}): {REMEDY}, or free space") from error


# ---- helpers -------------------------------------------------------------------------------------------------------


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _check_name(path: Path) -> None:
    """Raises UserError for an invalid file name."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise UserError(f"output {path}: cannot be written ({error.strerror}): {REMEDY}") from error
    except ValueError as error:  # NUL, or letters that no encoding has
        raise UserError(f"output {str(path)!r}: is no file name: {REMEDY}") from error


def _check_kind(path: Path, inputs: Sequence[AnyPath]) -> None:
    """Raises UserError for an output that a file must not replace."""
    _check_name(path)
    if not path.name:
        raise UserError(f"output {str(path)!r}: is no file name: {REMEDY}")
    mode = path.lstat().st_mode if _exists(path) else None
    if mode is not None:
        if stat.S_ISLNK(mode):
            raise UserError(f"output {path}: is a symbolic link: {REMEDY}")
        if stat.S_ISDIR(mode):
            raise UserError(f"output {path}: is a folder: give a file's path")
        if not stat.S_ISREG(mode):
            raise UserError(f"output {path}: is a device, not a file: {REMEDY}")
    for source in map(Path, inputs):
        if mode is not None and source.exists() and os.path.samefile(source, path):
            raise UserError(f"output {path}: is read as well: {REMEDY}")


def _check_writable(path: Path, needs_bytes: int) -> None:
    """Raises UserError if no file can be created at `path`, or the disk has too little space."""
    # A broken link counts as existing: no folder can be created in its place.
    there = next((parent for parent in path.absolute().parents if _exists(parent)), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
        free = shutil.disk_usage(there).free
    except OSError as error:
        raise UserError(f"output {path}: cannot be written ({error.strerror}): {REMEDY}") from error
    if free < needs_bytes:
        raise UserError(
            f"output {path}: takes {needs_bytes / 2**20:,.0f} MiB, the disk has {free / 2**20:,.0f}: free space or "
            f"{REMEDY}"
        )


def _locked_folder(folder: Path) -> tuple[Path, int]:
    """Creates a locked folder next to `folder`, returns its descriptor too, and removes those without a lock."""
    prefix, suffix = f".{folder.name[:100]}.", ".part"
    for left in folder.parent.glob(f"{_literal(prefix)}*{suffix}"):
        number = try_lock(left)
        if number is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(number)
    while True:
        aside = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=folder.parent))
        number = try_lock(aside)
        # Another writer may have removed the new folder before it was locked.
        if number is not None and aside.exists():
            return aside, number


def _literal(text: str) -> str:
    """Escapes text for a glob pattern."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def _is_of(error: OSError, path: Path) -> bool:
    """Returns whether an error is from writing to `path`, and not from reading another file."""
    if error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EFBIG) or error.filename is None:
        return True
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else ""
    return Path(name).absolute().is_relative_to(path.absolute().parent)


def _png_software(path: Path) -> str | None:
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.info.get("Software")
    except Exception:  # the decoder can raise anything for a damaged file, which is not ours
        return None
